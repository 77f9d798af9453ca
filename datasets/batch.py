"""What the loader hands to the training loop: crops as they were stored, and the batch made of them on a device."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from scanfoundry.datasets.centres import Centres
from scanfoundry.datasets.device import to_device


@dataclass(frozen=True)
class Batch:
    """Crops of one shape, all of them 2D (D = 1) or all of them 3D.

    Attributes:
        voxels: (B, C, D, H, W) float32, normalised as `intensity.normalise` does.
        valid: (B, 1, D, H, W) bool, False where a crop reaches beyond its scan or its source's map excludes a voxel.
        seeds: (B,) int64 on the host, where all that depends on them is drawn: one for each sample, for augmentation
            and masking; the same at any number of ranks.
        keys: B strings, the key of each sample.
        modalities: B strings, the modality of each sample.
        sources: B strings, the name of each sample's source.
        step: optimiser step, since the start of the run, that the batch belongs to.
        paired: row B / 2 + i is the partner of row i (`data.positives`: crops, study).
        clean: of a view, `voxels` as they were before any change of intensities; None where nobody asked for it.
        centres: where the crops lie in their scans, also of a view; the loader always fills it in.
        labels: (B, 1, D, H, W) uint8 on the host, where what is compared is drawn: the label map of each crop where all
            sources are synthetic; else None, and of views that were moved.
        complete: (B,) bool, whether `valid` is True all over a sample, as far as the host knows without asking the
            device: where it is True, all of the sample is valid. None: the host knows nothing.
    """

    voxels: torch.Tensor
    valid: torch.Tensor
    seeds: torch.Tensor
    keys: list[str]
    modalities: list[str]
    sources: list[str]
    step: int
    paired: bool = False
    clean: torch.Tensor | None = None
    centres: Centres | None = None
    labels: torch.Tensor | None = None
    complete: NDArray[np.bool_] | None = None

    def __len__(self) -> int:
        return self.voxels.shape[0]

    def halves(self) -> tuple["Batch", "Batch"]:
        """The first scans and their partners, row by row.

        Returns:
            Two batches that are views of this one.

        Raises:
            ValueError: the batch is not paired.
        """
        if not self.paired:
            raise ValueError("the batch has no partners: data.positives is neither 'crops' nor 'study'")
        middle = len(self) // 2
        return self._rows(slice(0, middle)), self._rows(slice(middle, None))

    def _rows(self, rows: slice) -> "Batch":
        return Batch(
            self.voxels[rows],
            self.valid[rows],
            self.seeds[rows],
            self.keys[rows],
            self.modalities[rows],
            self.sources[rows],
            self.step,
            centres=self.centres and self.centres.rows(rows),
            labels=None if self.labels is None else self.labels[rows],
            complete=None if self.complete is None else self.complete[rows],
        )

    @property
    def is_2d(self) -> bool:
        """Whether the crops are images (depth 1)."""
        return self.voxels.shape[2] == 1

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """The same batch with its voxels on `device`."""
        return replace(
            self,
            voxels=self.voxels.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
            clean=None if self.clean is None else self.clean.to(device, non_blocking=non_blocking),
        )


@dataclass(frozen=True)
class Crops:
    """Crops in shared memory, in the dtype of their scans, so that little crosses to the device.

    The other attributes are those of `Batch`.

    Attributes:
        voxels: (B, C, D, H, W), undefined outside of `inside`. The memory is used again when this tensor is dropped.
        inside: (B, 2, 3) int, the first voxel along D, H, W that lies in the scan, and the end.
        flips: (B, 3) bool, along D, H, W.
        scaling: (B, 4) float32: low, high, centre, 1 / scale; see `intensity.scaling`.
        excluded: (B, bytes) uint8, the packed bits of (D, H, W), True where a voxel is excluded; None where none is.
        labels: (B, D, H, W) uint8, in the same memory as the voxels; None where a source is not synthetic.
        complete: see `Batch`; None until the crops are copied.
    """

    voxels: torch.Tensor
    inside: NDArray[np.int64]
    flips: NDArray[np.bool_]
    scaling: NDArray[np.float32]
    seeds: torch.Tensor
    keys: list[str]
    modalities: list[str]
    sources: list[str]
    step: int
    paired: bool = False
    excluded: torch.Tensor | None = None
    centres: Centres | None = None
    labels: torch.Tensor | None = None
    complete: NDArray[np.bool_] | None = None

    def copied(self, device: torch.device) -> "Crops":
        """These crops with what is large of them on a device, by copies that the host does not wait for.

        The copies read this object's memory when the device comes to them: keep it until then.
        """
        return replace(
            self,
            voxels=self.voxels.to(device, non_blocking=True),
            excluded=None if self.excluded is None else self.excluded.to(device, non_blocking=True),
            labels=None if self.labels is None else self.labels.clone(),
            complete=self._complete(),
        )

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device, where it is cast, normalised, padded and flipped."""
        device, given = torch.device(device), self.voxels
        voxels = given.to(device).to(torch.float32)
        if voxels is given and device.type == "cpu":  # the ring's memory is filled again
            voxels = voxels.clone()
        valid = self._valid(voxels.device)
        low, high, centre, factor = to_device(self.scaling, voxels.device).view(-1, 4, 1, 1, 1, 1).unbind(1)
        if valid is not None:
            voxels = torch.where(valid, voxels, low)
        # In this order and with these roundings: `intensity.normalise` gives the same bits.
        voxels.clamp_(low, high).sub_(centre).mul_(factor)
        if valid is None:
            valid = torch.ones((len(voxels), 1, *voxels.shape[2:]), dtype=torch.bool, device=voxels.device)
        for sample in np.flatnonzero(self.flips.any(1)):
            axes = [1 + int(axis) for axis in np.flatnonzero(self.flips[sample])]
            voxels[sample] = voxels[sample].flip(axes)
            valid[sample] = valid[sample].flip(axes)
        names = self.keys, self.modalities, self.sources
        return Batch(
            voxels, valid, self.seeds, *names, self.step, self.paired, centres=self.centres, labels=self._label_maps(),
            complete=self._complete() if self.complete is None else self.complete,
        )  # fmt: skip

    def _label_maps(self) -> torch.Tensor | None:
        """(B, 1, D, H, W) in memory of their own, since the ring's is filled again; None where there are none."""
        return None if self.labels is None else self.labels.clone().unsqueeze(1)

    def _complete(self) -> NDArray[np.bool_]:
        """(B,) bool, whether all voxels of a crop are inside its scan and none is excluded."""
        inside = (self.inside[:, 0] == 0).all(1) & (self.inside[:, 1] == np.array(self.voxels.shape[2:])).all(1)
        if self.excluded is None:
            return inside
        packed: NDArray[np.uint8] = self.excluded.numpy()
        return inside & ~packed.any(1)

    def _valid(self, device: torch.device) -> torch.Tensor | None:
        """(B, 1, D, H, W) bool, True where a voxel is inside the scan and not excluded; None where all voxels are."""
        inside = self._inside(device)
        if self.excluded is None:
            return inside
        count = self.voxels[0, 0].numel()
        shifts = torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
        bits = (self.excluded.to(device)[:, :, None] >> shifts & 1).flatten(1)[:, :count]
        kept = (bits == 0).view(-1, 1, *self.voxels.shape[2:])
        return kept if inside is None else kept & inside

    def _inside(self, device: torch.device) -> torch.Tensor | None:
        """(B, 1, D, H, W) bool, True inside the scan; None where all voxels are."""
        shape = self.voxels.shape[2:]
        if (self.inside[:, 0] == 0).all() and (self.inside[:, 1] == np.array(shape)).all():
            return None
        bounds = to_device(self.inside, device)
        valid = torch.ones((len(bounds), 1, *shape), dtype=torch.bool, device=device)
        for axis, length in enumerate(shape):
            at = torch.arange(length, device=device)
            inside = (at >= bounds[:, 0, axis, None]) & (at < bounds[:, 1, axis, None])
            valid &= inside.view(-1, 1, *(length if each == axis else 1 for each in range(3)))
        return valid
