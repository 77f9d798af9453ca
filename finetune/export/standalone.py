"""What scanfoundry does to a scan before and after the network, in numpy and scipy alone: part of every export.

`about` is the JSON file of the export. Arrays are (channel, D, H, W); D, H, W of a NIfTI array (x, y, z) is its
transpose, of an image H is down and W to the right, D one slice. The network is any function from (1, C, *patch)
float32 to its output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.ndimage  # noqa: F401 - of `apply`, when it is written out here
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from scanfoundry.datasets.crop import as_channels
from scanfoundry.datasets.intensity import background, normalise, statistics
from scanfoundry.finetune.cases.volumes import target_shape
from scanfoundry.finetune.inference.postprocess import apply
from scanfoundry.finetune.inference.windows import window_starts
from scanfoundry.finetune.sample import fitted_shape

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def prepare(
    channels: Sequence[NDArray | None], spacing: Sequence[float], about: dict[str, Any]
) -> tuple[NDArray[np.float32], float]:
    """The network's image (C, d, h, w) at its own grid and the value outside it.

    channels: for each of about['channels'] an array (1 or more, D, H, W) on one common grid, None where it is missing.
    spacing: mm of D, H and W. ValueError where there are not as many channels, or their shapes differ.
    """
    given = [array for array in channels if array is not None]
    if len(channels) != len(about["channels"]) or not given:
        raise ValueError(f"give one array for each of the channels {about['channels']}, None where it is missing")
    if any(array.shape[1:] != given[0].shape[1:] for array in given):
        raise ValueError(f"the channels have different shapes: {[array.shape[1:] for array in given]}")
    rule: Any = SimpleNamespace(**about["intensity"])
    single, wanted = len(channels) == 1, 1 if len(channels) > 1 else about["in_channels"]
    parts: list[NDArray[np.float32] | None] = []
    fills: list[float] = []
    for array, modality in zip(channels, about["modalities"], strict=True):
        if array is None:
            parts.append(None)
            continue
        voxels = with_channels(array, wanted, about["grey"])
        stats = statistics(voxels)
        parts.append(normalise(voxels, modality, stats, rule))
        fills.append(background(modality, stats, rule))
    fill = fills[0] if single else float(np.mean(fills))
    shape = (1, *given[0].shape[1:])
    image = np.concatenate([np.full(shape, fill, np.float32) if part is None else part for part in parts])
    return resize(image, shape_for(given[0].shape[1:], spacing, about)), fill


def millimetres(xyzt_units: Any) -> float:
    """How many mm are one of what a NIfTI header counts in, by its number for that: metres, mm, microns, or unknown."""
    return {1: 1e3, 3: 1e-3}.get(int(np.asarray(xyzt_units)) & 7, 1.0)


def with_channels(voxels: NDArray, wanted: int, grey: str) -> NDArray:
    """The grey of colours for a network of one channel, or the one channel repeated; ValueError otherwise."""
    if len(voxels) == wanted:
        return voxels
    if not (len(voxels) == 1 or (wanted == 1 and len(voxels) == 3)):
        raise ValueError(f"the scan has {len(voxels)} channels, the network takes {wanted}")
    if wanted == 1 and grey == "mean":
        return voxels.astype(np.float32).mean(0, keepdims=True)
    return np.ascontiguousarray(as_channels(voxels, wanted))


def shape_for(shape: Sequence[int], spacing: Sequence[float], about: dict[str, Any]) -> tuple[int, ...]:
    """The grid (d, h, w) that a scan (D, H, W) is brought to: the plan's spacing, or fitted into the patch."""
    plan: Any = SimpleNamespace(spacing=about["spacing"], patch=tuple(about["patch"]))
    d, h, w = shape
    z, y, x = spacing
    if about["grid"] == "spacing":
        return target_shape((d, h, w), (z, y, x), plan.spacing)
    return fitted_shape((d, h, w), (z, y, x), plan)


def resize(array: NDArray[np.float32], shape: Sequence[int]) -> NDArray[np.float32]:
    """(C, D, H, W) to another grid over the same extent: linear between voxel centres, smoothed where it shrinks."""
    if array.shape[1:] == tuple(shape):
        return array
    sigma = np.maximum(0.0, (np.array(array.shape[1:]) / np.array(shape) - 1) / 2)
    if (sigma > 0.1).any():
        array = np.stack([gaussian_filter(channel, sigma) for channel in array])
    for axis, size in enumerate(shape, start=1):
        n = array.shape[axis]
        at = np.clip((np.arange(size) + 0.5) * n / size - 0.5, 0, n - 1)
        low = np.floor(at).astype(int)
        part = (at - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(4)])
        array = array.take(low, axis) * (1 - part) + array.take(np.minimum(low + 1, n - 1), axis) * part
    return array


def padded(image: NDArray[np.float32], fill: float, patch: Sequence[int]) -> tuple[NDArray[np.float32], list[int]]:
    """The image in the middle of a patch where it is smaller, and how many voxels lie before it on each axis."""
    missing = [max(0, p - n) for n, p in zip(image.shape[1:], patch, strict=True)]
    before = [m // 2 for m in missing]
    pairs = [(0, 0), *((b, m - b) for b, m in zip(before, missing, strict=True))]
    return np.pad(image, pairs, constant_values=fill), before


def window_weight(patch: Sequence[int]) -> NDArray[np.float32]:
    """A Gaussian about the middle of the patch, sigma an eighth of its length, nowhere below 0.001."""
    weight = np.ones(())
    for n in patch:
        line = np.exp(-0.5 * ((np.arange(n) - (n - 1) / 2) / (n / 8)) ** 2)
        weight = weight[..., None] * line
    return np.maximum(weight, 1e-3).astype(np.float32)


def mirrored(network: Network, window: NDArray[np.float32], about: dict[str, Any]) -> list[NDArray[np.float32]]:
    """The network's outputs (C', ...) for a window and its mirrorings; maps are turned back."""
    found = []
    for axes in about["mirrors"]:
        turned = tuple(axis + 1 for axis in axes)
        flipped = np.ascontiguousarray(np.flip(window, turned)[None])
        output = network(flipped)[0]
        found.append(np.flip(output, turned) if output.ndim == 4 else output)
    return found


def whole_logits(
    network: Network, image: NDArray[np.float32], fill: float, about: dict[str, Any]
) -> NDArray[np.float32]:
    """Logits (K, d, h, w) of the whole image by overlapping windows."""
    patch = about["patch"]
    large, before = padded(image, fill, patch)
    weight = window_weight(patch)
    weights = np.zeros(large.shape[1:], np.float32)
    total: NDArray[np.float32] | None = None
    starts = (window_starts(n, p, about["overlap"]) for n, p in zip(large.shape[1:], patch, strict=True))
    for start in product(*starts):
        place = tuple(slice(s, s + p) for s, p in zip(start, patch, strict=True))
        scores = np.mean(mirrored(network, large[:, *place], about), axis=0)
        if total is None:
            total = np.zeros((len(scores), *large.shape[1:]), np.float32)
        total[:, *place] += scores * weight
        weights[place] += weight
    assert total is not None
    inside = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return total[:, *inside] / weights[inside]


def label_map(
    logits: NDArray[np.float32],
    shape: Sequence[int],
    spacing: Sequence[float],
    about: dict[str, Any],
    voxel_mm3: float | None = None,
) -> NDArray[np.integer]:
    """Labels (D, H, W) at the file's grid: logits resized, the largest, without what about['postprocess'] removes, as
    about['values'] has them. voxel_mm3: of axes that are not at right angles; None: the product of the spacing."""
    labels = resize(logits, shape).argmax(0).astype(np.uint8)
    rules: list[Any] = [SimpleNamespace(**rule) for rule in about["postprocess"]]
    kept = apply(labels, rules, float(np.prod(spacing)) if voxel_mm3 is None else voxel_mm3)
    values = [0, *about["values"]]
    kind = np.result_type(np.uint8, *(np.min_scalar_type(number) for number in values))
    return np.array(values, kind)[kept]


def value(network: Network, image: NDArray[np.float32], fill: float, about: dict[str, Any]) -> NDArray[np.float64]:
    """Of the whole scan (1,): the mean over the mirrorings."""
    large, _ = padded(image, fill, about["patch"])
    return np.mean(mirrored(network, large, about), axis=0, dtype=np.float64)


def probabilities(
    network: Network, image: NDArray[np.float32], fill: float, about: dict[str, Any]
) -> NDArray[np.float64]:
    """Of each class (K,): the mean over the mirrorings, p^(1/temperature) of it brought to a sum of 1."""
    large, _ = padded(image, fill, about["patch"])
    logits = np.stack(mirrored(network, large, about)).astype(np.float64)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    mean = (odds / odds.sum(1, keepdims=True)).mean(0)
    tempered = (mean / mean.max()) ** (1 / about["temperature"])
    return tempered / tempered.sum()
