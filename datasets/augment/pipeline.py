"""`Augment`: from a batch to a view of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.augment import geometric, intensity, noise, resample, smooth
from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.draw import Drawer, Drawn
from scanfoundry.datasets.augment.transforms import MAX_HOLES
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.device import to_device


@dataclass(frozen=True)
class _Part:
    """The n samples of a batch that get a transform."""

    voxels: torch.Tensor  # (n, C, D, H, W)
    valid: torch.Tensor | None  # (n, 1, D, H, W); None where all is valid
    low: torch.Tensor  # (n, 1, 1, 1, 1)
    high: torch.Tensor
    keys: torch.Tensor  # (n, 2) int32
    values: NDArray[np.float64]  # (n, k)

    @property
    def shape(self) -> Size3D:
        depth, height, width = self.voxels.shape[2:]
        return depth, height, width

    def column(self, number: int) -> torch.Tensor:
        """One drawn number of each sample: (n, 1, 1, 1, 1)."""
        return to_device(self.values[:, number], self.voxels.device, self.voxels.dtype).view(-1, 1, 1, 1, 1)


def _blur(part: _Part) -> torch.Tensor:
    operators = smooth.gaussian(part.values, part.shape, part.voxels.device)
    return smooth.smoothed(part.voxels, part.valid, operators)


def _low_resolution(part: _Part) -> torch.Tensor:
    zoom = low_resolution_zoom(part.values, part.shape)
    return smooth.smoothed(part.voxels, part.valid, smooth.coarse(zoom, part.shape, part.voxels.device))


def low_resolution_zoom(values: NDArray[np.float64], shape: Size3D) -> NDArray[np.float64]:
    """Zooms (n, 3) along D, H, W out of the draws of `LowResolution` (n, 5)."""
    zoom = np.exp(values[:, 2:])
    if shape[0] == 1:
        axis = 1 + (2 * values[:, 1]).astype(int)
    else:
        axis = np.where(values[:, 1] < 0.5, 0, 1 + (4 * (values[:, 1] - 0.5)).astype(int))
    return np.where((values[:, :1] < 0) & (np.arange(3) != axis[:, None]), 1.0, zoom)


def _speckle(part: _Part) -> torch.Tensor:
    grain = smooth.gaussian(np.repeat(part.values[:, 1:], 3, 1), part.shape, part.voxels.device)
    return noise.speckle(part.voxels, part.low, part.keys, part.column(0), grain)


# In this order: what the scanner does before what the display does.
_STEPS: dict[str, Callable[[_Part], torch.Tensor]] = {
    "bias_field": lambda part: intensity.bias_field(part.voxels, part.low, part.values),
    "blur": _blur,
    "low_resolution": _low_resolution,
    "speckle": _speckle,
    "noise": lambda part: noise.gaussian_noise(part.voxels, part.keys, part.column(0)),
    "rician": lambda part: noise.rician_noise(part.voxels, part.low, part.keys, part.column(0)),
    "window": lambda part: intensity.window(part.voxels, part.column(0), part.column(1)),
    "gamma": lambda part: intensity.gamma(part.voxels, part.low, part.high, part.column(0).exp()),
    "contrast": lambda part: intensity.contrast(part.voxels, part.valid, part.column(0).exp()),
    "brightness": lambda part: intensity.brightness(part.voxels, part.column(0)),
    "invert": lambda part: intensity.invert(part.voxels, part.low, part.high),
    "erase": lambda part: intensity.erase(part.voxels, part.valid, part.values, MAX_HOLES),
}


INTENSITIES = tuple(_STEPS)  # the transforms that change voxels and do not move them


class Augment:
    """Makes views of batches, on the device that the batch is on.

    A view is a pure function of each sample's voxels, valid, seed and modality, of the view's number and the
    configuration: not of the rest of the batch, the rank or the device, up to the rounding of float32.

    Voxels that are not valid keep the sample's background: -1 for CT, else the darkest value of the crop. Nothing
    that is valid becomes darker than it, and CT stays in [-1, 1]. A view has no gradient and shares no memory with
    its batch; keys, seeds, modalities and sources are handed on. Label maps are, too, where no sample was moved.

    Args:
        config: which transforms.
        clean: views also hold their voxels after the geometry and before the intensities (`Batch.clean`).
    """

    def __init__(self, config: AugmentConfig, clean: bool = False) -> None:
        self.config = config
        self._clean = clean
        self._drawer = Drawer(config)

    def __call__(self, batch: Batch, view: int = 0) -> Batch:
        """View number `view` of the batch."""
        return self.located(batch, view)[0]

    def views(self, batch: Batch, count: int) -> list[Batch]:
        """Views 0 to count - 1."""
        return [self(batch, number) for number in range(count)]

    @torch.no_grad()
    def located(self, batch: Batch, view: int = 0) -> tuple[Batch, torch.Tensor]:
        """The view, and where it lies: (B, 4, 4) float64 on the CPU, from its voxel (d, h, w, 1) to the batch's."""
        drawn = self._drawer(batch.seeds.tolist(), batch.modalities, view)
        device = batch.voxels.device
        # The engine's bf16 would round the coordinates and the averages.
        with torch.autocast(device.type, enabled=False):
            low, high = _levels(batch)
            full = _complete(batch.valid, batch.complete)
            depth, height, width = batch.voxels.shape[2:]
            geometry = geometric.plan(drawn, (depth, height, width), self._size(batch))
            voxels, valid = resample.move(batch.voxels, batch.valid, full, low, geometry)
            clean = voxels.clone() if self._clean else None
            still = full & resample.stays_complete(geometry, (depth, height, width))
            full = _complete(valid, still)
            self._intensities(voxels, valid, full, low, high, batch.modalities, drawn)
        moved = voxels.shape != batch.voxels.shape or bool((geometry.matrices != np.eye(4)).any())
        labels = None if moved else batch.labels
        made = replace(batch, voxels=voxels, valid=valid, clean=clean, labels=labels, complete=full)
        return made, torch.from_numpy(geometry.matrices)

    def _size(self, batch: Batch) -> Size3D:
        if batch.is_2d and self.config.size_2d:
            return (1, *self.config.size_2d)
        if not batch.is_2d and self.config.size_3d:
            return self.config.size_3d
        depth, height, width = batch.voxels.shape[2:]
        return depth, height, width

    def _intensities(
        self,
        voxels: torch.Tensor,
        valid: torch.Tensor,
        full: NDArray[np.bool_],
        low: torch.Tensor,
        high: torch.Tensor,
        modalities: list[str],
        drawn: Drawn,
    ) -> None:
        """Changes `voxels` in place, sample by sample of those that drew something."""
        touched = np.any([drawn.on[name] for name in _STEPS], axis=0)
        if not touched.any():
            return
        device = voxels.device
        keys = to_device(drawn.keys, device)
        for name, step in _STEPS.items():
            # Apart, so that a sample's arithmetic does not depend on its neighbours' padding.
            for complete in (True, False):
                chosen = np.flatnonzero(drawn.on[name] & (full == complete))
                if chosen.size:
                    rows = to_device(chosen, device)
                    mask = None if complete else valid[rows]
                    part = _Part(voxels[rows], mask, low[rows], high[rows], keys[rows], drawn.values[name][chosen])
                    voxels[rows] = step(part)
        rows = to_device(np.flatnonzero(touched), device)
        result = voxels[rows].maximum(low[rows])
        is_ct = _is_ct(modalities, device)[rows]
        result = torch.where(is_ct.view(-1, 1, 1, 1, 1), result.clamp(max=1), result)
        voxels[rows] = torch.where(valid[rows], result, low[rows])


def _levels(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Darkest and brightest value of each sample, (B, 1, 1, 1, 1); for CT those of its window."""
    flat = batch.voxels.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    is_ct = _is_ct(batch.modalities, low.device)
    low, high = torch.where(is_ct, -1.0, low), torch.where(is_ct, 1.0, high)
    return low.view(-1, 1, 1, 1, 1), high.view(-1, 1, 1, 1, 1)


def _is_ct(modalities: list[str], device: torch.device) -> torch.Tensor:
    return to_device(torch.tensor([modality == "ct" for modality in modalities]), device)


def _complete(valid: torch.Tensor, known: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    """(B,) bool, whether all of a sample is valid: `known` of it, where the device would have to be asked."""
    if valid.device.type != "cpu" and known is not None:
        return known
    complete: NDArray[np.bool_] = valid.flatten(1).all(1).cpu().numpy()
    return complete
