"""Which voxels of a label map are compared: of every label as many, by the seed of the sample alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.crop import mix, uniforms
from scanfoundry.datasets.device import to_device

_SALT = 0x9017  # parts these draws from those of augmentation and masks, which have the same seeds


@dataclass(frozen=True)
class Points:
    """M voxels of each of B samples.

    Attributes:
        index: (B, M) int64, in d, h, w order (w fastest).
        labels: (B, M) uint8.
        counted: (B, M) bool, False for what is there a second time.
    """

    index: Tensor
    labels: Tensor
    counted: Tensor

    def of(self, volume: Tensor) -> Tensor:
        """The values (B, M, F) of a volume (B, F, d, h, w), on the same device, at the voxels."""
        flat = volume.flatten(2)
        return flat.gather(2, self.index.unsqueeze(1).expand(-1, flat.shape[1], -1)).mT

    def on(self, device: torch.device) -> "Points":
        """The same on a device."""
        return Points(*(to_device(each, device) for each in (self.index, self.labels, self.counted)))


def at_grid(volume: Tensor, grid: Size3D) -> Tensor:
    """The voxel (B, 1, d, h, w) of a volume (B, 1, D, H, W) at the middle of each cell of a coarser grid."""
    for axis, cells in enumerate(grid, start=2):
        length = volume.shape[axis]
        middles = ((torch.arange(cells, device=volume.device) + 0.5) * (length / cells)).long()
        volume = volume.index_select(axis, middles.clamp(max=length - 1))
    return volume


def draw_points(labels: Tensor, seeds: Tensor, count: int) -> Points:
    """Voxels of label maps, as many of each label as its size allows.

    Each label is divided into strata of equal length, in d, h, w order, and a voxel drawn from each: what is compared
    is spread over the map. A map of at most `count` voxels is taken whole.

    Args:
        labels: (B, 1, d, h, w) uint8, on the host: how many labels there are decides on what is drawn.
        seeds: (B,) int64. No global random state is read or moved.
        count: of voxels.
    """
    flat = labels.flatten(1)
    if flat.shape[1] <= count:
        index = torch.arange(flat.shape[1]).expand(len(flat), -1)
        return Points(index, flat, torch.ones_like(flat, dtype=torch.bool))
    rows = [_stratified(row, seed, count) for row, seed in zip(flat, seeds.tolist(), strict=True)]
    index = torch.stack(rows)
    counted = torch.ones_like(index, dtype=torch.bool)
    counted[:, 1:] = index[:, 1:] != index[:, :-1]
    return Points(index, flat.gather(1, index), counted)


def _stratified(labels: Tensor, seed: int, count: int) -> Tensor:
    """Ascending indices (count,) of voxels of a flat label map; those of a small label come more than once."""
    order = labels.argsort(stable=True)
    sizes = labels[order].unique_consecutive(return_counts=True)[1]
    number = torch.arange(count)
    label, turn = number % len(sizes), number // len(sizes)
    turns = label.bincount(minlength=len(sizes))[label]
    place = torch.from_numpy(uniforms(mix(seed, _SALT), count))
    within = ((turn + place) / turns * sizes[label]).long().minimum(sizes[label] - 1)
    first = sizes.cumsum(0) - sizes
    return order[first[label] + within].sort().values
