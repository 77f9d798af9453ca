"""Anchor sizes and pyramid levels, planned from the training boxes on the CPU."""

from collections.abc import Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.optimize import differential_evolution
from sklearn.cluster import KMeans

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D

PER_LEVEL = 3  # anchors of each place; the heads are shared, so every level has as many
OUTLIERS = (0.5, 99.5)  # percentiles of each side outside of which a box is not planned for (nnDetection)
ENOUGH = 50  # fewer boxes stand for a wider range of sizes than their own
ZOOMS = (0.5, 0.71, 1.0, 1.0, 1.0, 1.41, 2.0)  # their own counts most
POINTS = 400  # sizes that the search looks at; more are thinned out evenly
GENERATIONS, POPULATION = 120, 60

COARSEST_START = 4  # the finest level is no coarser than this: places, not only features, must fit the findings
CELLS_PER_SIDE = 2.0  # a small finding covers as many cells along a side, or it is missed
CELLS = 2**17  # places of a patch at the finest level, at most: what the heads keep there fills the memory
LEVEL_CELLS = 4.0  # larger findings belong to the next level
MIN_LEVELS, MAX_LEVELS, TOP_CELLS = 3, 4, 8.0  # a level more where large findings cover over TOP_CELLS of the last

Sizes = npt.NDArray[np.float64]  # (N, A)
Anchors = list[list[list[float]]]  # level, anchor, size (D, H, W) or (H, W)


def mean_max_iou(sizes: Sizes, anchors: Sizes) -> float:
    """Mean over boxes (N, A) of the best IoU that an anchor (K, A) of the same centre has with it."""
    return float(_max_iou(sizes, anchors[None])[0].mean())


def fit_anchors(sizes: Sizes, n: int) -> tuple[Sizes, float]:
    """The n sizes (n, A) of highest `mean_max_iou` with boxes (N, A), and that value; deterministic, about a second.

    nnDetection's objective (Baumgartner et al. 2021) by differential evolution (Storn and Price 1997) on the
    logarithms, which starts around the centres of k-means and keeps the best it has seen: never worse than those.
    """
    start = _k_means(sizes, n)
    few = sizes[np.lexsort(sizes.T)][:: max(1, -(-len(sizes) // POINTS))]
    axes = sizes.shape[1]
    rng = np.random.default_rng(0)
    low, high = np.log(sizes.min(0)), np.log(sizes.max(0)) + 1e-3
    spread = rng.normal(0, 0.25, (POPULATION, n, axes)) * np.linspace(0, 1, POPULATION)[:, None, None]
    population = np.clip(np.log(start) + spread, low, high).reshape(POPULATION, -1)
    found = differential_evolution(
        lambda x: -_max_iou(few, np.exp(x.T.reshape(-1, n, axes))).mean(-1),
        list(zip(np.tile(low, n), np.tile(high, n), strict=True)),
        init=population,
        maxiter=GENERATIONS,
        mutation=(0.2, 0.8),
        tol=0,
        rng=rng,
        polish=False,
        vectorized=True,
        updating="deferred",
    )
    best = max((start, np.exp(found.x).reshape(n, axes)), key=lambda anchors: mean_max_iou(sizes, anchors))
    return best, mean_max_iou(sizes, best)


def plan_anchors(sizes: Sizes, strides: Sequence[Size3D]) -> tuple[Anchors, float]:
    """Sizes (N, A) of the training boxes -> PER_LEVEL anchors for each stride, and their mean best IoU with the boxes.

    Each level is fitted to the boxes of up to LEVEL_CELLS of its cells along a side that no finer level has; one
    without such boxes gets its neighbour's anchors at its own scale. Fitted to all boxes at once, anchors of one
    common size end up on every level, which then compete for the same findings: measured, 0.31 in place of 0.68 AP at
    IoU 0.5 for blood cells after 200 steps. UserError without any box, or for one without volume.
    """
    if not len(sizes):
        raise UserError("none of the training cases has a box: raise 'shots' or take another seed")
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise UserError("a training box has no extent along an axis: mend or remove it")
    low = np.percentile(sizes, OUTLIERS[0], axis=0, method="lower")
    high = np.percentile(sizes, OUTLIERS[1], axis=0, method="higher")
    usual = sizes[((sizes >= low) & (sizes <= high)).all(1)]
    usual = usual if len(usual) else sizes
    points = usual if len(usual) >= ENOUGH else np.concatenate([usual * zoom for zoom in ZOOMS])
    steps = np.array([_mean_step(stride, sizes.shape[1]) for stride in strides])
    level = np.searchsorted(LEVEL_CELLS * steps[:-1], np.exp(np.log(points).mean(1)))
    fitted = {i: fit_anchors(points[level == i], PER_LEVEL)[0] for i in range(len(steps)) if (level == i).any()}
    anchors = []
    for i, step in enumerate(steps):
        nearest = min(fitted, key=lambda known: abs(known - i))
        own = fitted[nearest] * step / steps[nearest]
        anchors.append(own[np.lexsort((*own.T, own.prod(1)))].round(2))
    return [level.tolist() for level in anchors], mean_max_iou(usual, np.concatenate(anchors))


def plan_strides(sizes: Sizes, available: Sequence[Size3D], patch: Size3D) -> list[Size3D]:
    """Strides (D, H, W) of the pyramid's levels, finest first, for boxes (N, A) at the plan's grid.

    available: what the encoder can start from, finest first. The start is the coarsest of a stride up to
    COARSEST_START that gives the small boxes (5th percentile of the mean side) CELLS_PER_SIDE cells, or else the
    finest; of those whose map has CELLS places at most. Each further level is twice as coarse, where the patch still
    has two cells.
    """
    step = partial(_mean_step, axes=sizes.shape[1])
    side = np.exp(np.log(sizes).mean(1))
    small, large = np.percentile(side, 5), np.percentile(side, 95)

    def fits(stride: Size3D) -> bool:
        return float(np.prod([size / s for size, s in zip(patch, stride, strict=True)])) <= CELLS

    possible = [s for s in available if fits(s) and step(s) <= COARSEST_START] or [s for s in available if fits(s)]
    possible = possible or list(available)[-1:]
    wide = [s for s in possible if step(s) <= COARSEST_START and small >= CELLS_PER_SIDE * step(s)]
    strides = [wide[-1] if wide else possible[0]]
    while len(strides) < MIN_LEVELS or (len(strides) < MAX_LEVELS and large > TOP_CELLS * step(strides[-1])):
        following = next((s for s in available if step(s) > step(strides[-1])), None)
        strides.append(following or _doubled(strides[-1], patch))
    return strides


def _mean_step(stride: Size3D, axes: int) -> float:
    return float(np.exp(np.log(np.array(stride[3 - axes :], float)).mean()))


def _doubled(stride: Size3D, patch: Size3D) -> Size3D:
    d, h, w = (s if s >= size else 2 * s for s, size in zip(stride, patch, strict=True))
    return d, h, w


def _max_iou(sizes: Sizes, anchors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """(N, A) boxes, (S, K, A) sets of anchors -> (S, N) best IoU in each set, all of one centre."""
    shared = np.minimum(sizes[None, None, :, 0], anchors[:, :, None, 0])
    for axis in range(1, sizes.shape[1]):
        shared = shared * np.minimum(sizes[None, None, :, axis], anchors[:, :, None, axis])
    union = sizes.prod(1)[None, None] + anchors.prod(2)[:, :, None] - shared
    return (shared / union).max(1)


def _k_means(sizes: Sizes, n: int) -> Sizes:
    """n centres of the logarithms; around the distinct sizes where there are fewer."""
    points = np.log(sizes[np.lexsort(sizes.T)])
    if len(np.unique(points.round(6), axis=0)) < n:
        points = np.concatenate([points + shift for shift in np.linspace(-0.3, 0.3, n)])
    return np.exp(KMeans(n, n_init=4, random_state=0).fit(points).cluster_centers_)
