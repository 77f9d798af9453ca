"""A 1x1 convolution on the up-sampled feature maps: fitted at points, applied to each level, scored by Dice.

A linear map and linear interpolation commute: the maps are mixed at their own resolution and only the classes' scores
are up-sampled, so no stack of full-size feature maps is ever made.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.datasets.crop import permutation
from scanfoundry.pretrain.distributed.collectives import summed
from scanfoundry.pretrain.distributed.world import World
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.probes.features import feature_maps, in_order
from scanfoundry.pretrain.probes.images import Images
from scanfoundry.pretrain.probes.ridge import STRENGTHS, Sums, ridge

POWERS = (0.0, 0.5, 1.0)  # a voxel weighs the frequency of its class to the minus this: Dice asks for more than 0


@dataclass(frozen=True)
class Points:
    """The voxels of each image that the probe is fitted to, n images of p points.

    grid (n, p, 3): coordinates x, y, z in [-1, 1]; labels (n, p) int64; weights (n, p): voxels that a point stands for
    """

    grid: Tensor
    labels: Tensor
    weights: Tensor


def draw_points(images: Images, points: int) -> Points:
    """`points` valid voxels of each image, as many of each of its classes; images that are there twice weigh 0.

    images.mask: class numbers (0 background), -1 where a voxel does not count. The same points for the whole run.
    """
    assert images.mask is not None
    n, shape = len(images), images.mask.shape[1:]
    grid, labels = torch.zeros(n, points, 3), torch.zeros(n, points, dtype=torch.int64)
    weights = torch.zeros(n, points, dtype=torch.float64)
    for row in range(images.own):
        flat = torch.where(images.valid[row, 0], images.mask[row], -1).flatten().numpy()
        present = [int(label) for label in np.unique(flat) if label >= 0]
        begin = 0
        for label in present:
            spots = np.flatnonzero(flat == label)
            taken = spots[permutation(images.places[row], len(spots))[: points // len(present)]]
            part = slice(begin, begin := begin + len(taken))
            where = np.stack(np.unravel_index(taken, shape)[::-1], axis=1)
            size = np.array(shape[::-1])
            grid[row, part] = torch.from_numpy((2 * where + 1) / size - 1).float()
            labels[row, part], weights[row, part] = label, len(spots) / max(1, len(taken))
    return Points(grid, labels, weights)


def at_points(maps: list[Tensor], grid: Tensor) -> Tensor:
    """All levels' features (B, p, F), linearly interpolated, at the points (B, p, 3) of the scan."""
    where = grid[:, None, None]
    read = [F.grid_sample(each, where, padding_mode="border", align_corners=False) for each in maps]
    return torch.cat(read, dim=1)[:, :, 0, 0].transpose(1, 2)


def predicted(maps: list[Tensor], weights: Tensor, intercept: Tensor, shape: torch.Size) -> Tensor:
    """Classes (B, D, H, W) of highest score by weights (F, K) over all levels' channels, and intercept (K,)."""
    parts = weights.float().split([each.shape[1] for each in maps])
    score = intercept.float().view(1, -1, 1, 1, 1)
    for each, part in zip(maps, parts, strict=True):
        mixed = torch.einsum("bfdhw,fk->bkdhw", each, part)
        score = score + F.interpolate(mixed, size=tuple(shape), mode="trilinear", align_corners=False)
    return score.argmax(1)


def dice(found: Tensor, truth: Tensor, classes: int) -> Tensor:
    """Dice (B, classes - 1) of the foreground classes of (B, D, H, W); voxels of truth -1 do not count.

    NaN where neither truth nor prediction has the class.
    """
    counts = truth >= 0
    overlaps = []
    for label in range(1, classes):
        one, other = (found == label) & counts, truth == label
        both, total = ((one & other).flatten(1).sum(1), one.flatten(1).sum(1) + other.flatten(1).sum(1))
        overlaps.append(2 * both / torch.where(total > 0, total, torch.nan))
    return torch.stack(overlaps, dim=1)


def mean_dice(values: Tensor) -> float:
    """Mean over scans of the mean over the classes (N, classes) that are defined; NaN where none is."""
    return float(values.nanmean(dim=1).nanmean())


class SegmentationProbe:
    """The parts `fit` and `held` of the training patients, and `test`: images of this rank, of `counts` in all."""

    def __init__(self, parts: dict[str, Images], counts: dict[str, int], classes: int, points: int,
                 rows: int, world: World) -> None:  # fmt: skip
        self.parts, self.counts, self.classes, self.rows, self.world = parts, counts, classes, rows, world
        self.points = {name: draw_points(parts[name], points) for name in ("fit", "held")}
        own = torch.zeros(classes, dtype=torch.float64)
        for each in self.points.values():
            own.index_add_(0, each.labels.flatten(), each.weights.flatten())
        share = summed(own.to(world.device)).cpu()
        share = share / share.sum()
        self.of_class = torch.stack([share.clamp(min=1e-12) ** -power for power in POWERS])  # (P, K)

    def measure(self, engine: Engine) -> dict[str, float]:
        """Mean Dice over the test scans, by the regularisation and class weights that are best on the part `held`."""
        sums = {name: self._sums(engine, name) for name in ("fit", "held")}
        if not all(bool(torch.isfinite(each.squares).all()) for each in sums.values()):
            return {"dice": float("nan")}  # of a run that diverges, which says so itself
        choices = list(product(range(len(POWERS)), STRENGTHS))
        tried = self._dice(engine, "held", [ridge(sums["fit"], *choice) for choice in choices])
        best = max(range(len(choices)), key=lambda each: np.nan_to_num(mean_dice(tried[:, each])))
        final = ridge(sums["fit"] + sums["held"], *choices[best])
        return {"dice": mean_dice(self._dice(engine, "test", [final])[:, 0])}

    def _sums(self, engine: Engine, name: str) -> Sums:
        """Over the points of all ranks' images of a part."""
        device, points, total = self.world.device, self.points[name], None
        for part, maps in feature_maps(engine, self.parts[name], self.rows, self.world):
            read = at_points(maps, points.grid[part].to(device)).flatten(0, 1)
            if total is None:
                total = Sums.zeros(len(POWERS), read.shape[1], self.classes, device)
            labels, weights = points.labels[part].flatten(), points.weights[part].flatten()
            total.add(read, labels.to(device), (weights * self.of_class[:, labels]).to(device))
        assert total is not None
        return Sums(summed(total.squares), summed(total.products))

    def _dice(self, engine: Engine, name: str, models: list[tuple[Tensor, Tensor]]) -> Tensor:
        """(scans, models, foreground classes) of a part's scans, of all ranks."""
        images, found = self.parts[name], []
        assert images.mask is not None
        for part, maps in feature_maps(engine, images, self.rows, self.world):
            truth = torch.where(images.valid[part, 0], images.mask[part], -1).to(self.world.device)
            each = [dice(predicted(maps, *model, truth.shape[1:]), truth, self.classes) for model in models]
            found.append(torch.stack(each, dim=1))
        return in_order(torch.cat(found), self.counts[name], self.world)
