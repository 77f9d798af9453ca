"""Intensities: what is measured once per scan, and how crops are normalised with it.

CT is clipped to a window of Hounsfield units and scaled to [-1, 1]; every other modality is clipped to
percentiles of the scan, then z-scored with the mean and standard deviation of the scan's foreground, or of all its
voxels (`zscore: scan`), which weights of others may have been trained with. The same
functions serve pre-training, fine-tuning and prediction, so the three never differ.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import field_validator

from scanfoundry.configs.base import Config

LOW, HIGH = (0.0, 0.5, 1.0, 2.0, 5.0), (95.0, 98.0, 99.0, 99.5, 100.0)
_SAMPLE = 1 << 18  # voxels that percentiles and threshold are estimated from; smaller scans are used whole
_BINS = 256
_FLAT = 1e-3  # a foreground whose spread is less, as a share of the scan's, has none
_NARROW = 1e-300  # what is closer together, or farther apart than its inverse, cannot be divided into bins


class IntensityConfig(Config):
    """How intensities are normalised; it is recorded in every checkpoint and reapplied at fine-tuning."""

    ct_window: tuple[float, float] = (-1000.0, 1000.0)
    percentiles: tuple[float, float] = (0.5, 99.5)
    zscore: Literal["foreground", "scan"] = "foreground"  # whose mean and deviation; of the scan: all its voxels

    @field_validator("percentiles")
    @classmethod
    def _check(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] not in LOW or value[1] not in HIGH:
            raise ValueError(f"percentiles that are stored with a scan: one of {LOW} and one of {HIGH}")
        return value


_CONFIGS = [IntensityConfig(percentiles=(low, high)) for low in LOW for high in HIGH]
# Names of the percentiles; the extremes are known exactly.
_NAMES = {level: f"p{round(level * 10):03d}" for level in LOW + HIGH} | {0.0: "min", 100.0: "max"}


def _sample(array: NDArray) -> NDArray[np.float64]:
    flat = array.reshape(-1)
    step = max(1, flat.size // _SAMPLE) | 1  # odd, so that it does not walk along one column of the scan
    return flat[::step].astype(np.float64)


def _rounded(value: float | np.floating) -> float:
    # The order of a sum, and so its last digits, differs between processors; what is stored must not.
    return float(f"{value:.6g}")


@np.errstate(all="ignore")  # of extreme values: some are not finite then, see `normalisable`
def statistics(array: NDArray) -> dict[str, float]:
    """Intensity statistics of a scan.

    Args:
        array: finite and not empty, of any shape.

    Returns:
        JSON numbers: min and max (exact); mean, std and the percentiles p005 p010 p020 p050 p950 p980 p990 p995 of the
        whole scan; threshold (foreground lies above it); the fraction of foreground; foreground_mean and
        foreground_std, of the foreground clipped to p005..p995. All but min and max are estimated from about 260,000
        evenly spaced voxels where the scan has more.
    """
    sample = _sample(array)
    levels = LOW + HIGH
    quantiles = dict(zip(levels, np.percentile(sample, levels), strict=True))
    threshold = foreground_threshold(sample, quantiles[0.5], quantiles[99.5])
    foreground = sample[sample > threshold]
    if foreground.size < 0.01 * sample.size:
        foreground = sample
    clipped = foreground.clip(quantiles[0.5], quantiles[99.5])
    quantiles[0.0], quantiles[100.0] = float(array.min()), float(array.max())
    return {
        "mean": _rounded(sample.mean()),
        "std": _rounded(sample.std()),
        **{_NAMES[level]: float(value) for level, value in quantiles.items()},
        "threshold": _rounded(threshold),
        "foreground": _rounded(foreground.size / sample.size),
        "foreground_mean": _rounded(clipped.mean()),
        "foreground_std": _rounded(clipped.std()),
    }


def foreground_threshold(sample: NDArray[np.float64], low: float, high: float) -> float:
    """Half-way between `low` and Otsu's threshold (Otsu 1979) of `sample` within [low, high].

    Otsu's own threshold parts dark from bright tissue as readily as air from body; half of it keeps dark tissue.
    """
    if not _NARROW < high - low < 1 / _NARROW:
        return low
    edges = np.linspace(low, high, _BINS + 1)
    bins = ((sample.clip(low, high) - low) * (_BINS / (high - low))).astype(np.int64)
    counts = np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    mass = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (mass / below - (mass[-1] - mass) / above) ** 2
    between = np.where(above > 0, between, -1.0)
    # In a gap between dark and bright every threshold is as good: the middle one is taken.
    otsu = centres[between >= between.max() * (1 - 1e-9)].mean()
    return float(low + (otsu - low) / 2)


def scaling(modality: str, stats: dict[str, float], config: IntensityConfig) -> tuple[float, float, float, float]:
    """The linear scaling of a scan.

    Args:
        modality: 'ct' is clipped to a window of Hounsfield units, every other modality to percentiles.
        stats: of the whole scan, as `statistics` returns them.
        config: window and percentiles.

    Returns:
        (low, high, centre, scale), with normalised = (clip(x, low, high) - centre) / scale.
    """
    if modality == "ct":
        low, high = config.ct_window
        return low, high, (low + high) / 2, (high - low) / 2
    low, high = (stats[_NAMES[level]] for level in config.percentiles)
    mean, deviation = ("mean", "std") if config.zscore == "scan" else ("foreground_mean", "foreground_std")
    # A foreground of one value, as of a shape mask, has no spread of its own: the background tells what is far.
    spread = stats[deviation] if stats[deviation] > _FLAT * (high - low) else high - low
    # A scan of one value has none at all; it becomes zero.
    return low, high, stats[mean], max(spread, 1e-6 * max(abs(low), abs(high))) or 1.0


@np.errstate(all="ignore")
def normalisable(stats: dict[str, float]) -> bool:
    """Whether `normalise` gives finite numbers for a scan with these statistics, whatever the percentiles."""
    if stats["foreground_std"] > 1e-15 and max(abs(stats["min"]), abs(stats["max"])) < 1e15:
        return True
    found = np.array([scaling("", stats, config) for config in _CONFIGS])
    ends, centre, factor = found[:, :2].astype(np.float32), found[:, 2:3].astype(np.float32), 1 / found[:, 3:]
    return bool(np.isfinite((ends - centre) * factor.astype(np.float32)).all())


def normalise(
    array: NDArray,
    modality: str,
    stats: dict[str, float],
    config: IntensityConfig,
    out: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Clip and scale voxels as their modality asks.

    Args:
        array: voxels of any shape and dtype.
        modality: of the scan.
        stats: of the whole scan, stored with it or from `statistics(scan)`, never those of the crop.
        config: window and percentiles.
        out: float32 of the same shape, where the result is written; None: a new array.

    Returns:
        float32 of the same shape.
    """
    low, high, centre, scale = scaling(modality, stats, config)
    if out is None:
        out = np.empty(array.shape, np.float32)
    np.copyto(out, array, casting="unsafe")
    np.clip(out, np.float32(low), np.float32(high), out=out)
    np.subtract(out, np.float32(centre), out=out)
    np.multiply(out, np.float32(1 / scale), out=out)
    return out


def background(modality: str, stats: dict[str, float], config: IntensityConfig) -> float:
    """The normalised value that padding outside of a scan gets: that of the scan's darkest kept intensity."""
    low, _, centre, scale = scaling(modality, stats, config)
    # Rounded as `normalise` rounds, so that padding and the darkest voxels are the same number.
    return float((np.float32(low) - np.float32(centre)) * np.float32(1 / scale))
