"""How the intensities of a scan look, so that a CT is not taken for an MR, or a label map for a scan."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.base import Config
from scanfoundry.datasets.readers import Scan

_SAMPLE = 1 << 17  # voxels that are looked at
_AIR, _TISSUE = (-4096.0, -850.0), (-200.0, 400.0)  # of CT, in Hounsfield units; scanners pad with less than air
_AIRY, _FLESHY = 0.01, 0.05  # shares of a CT that holds air and body
_COLOURED = 0.02  # mean difference between colours, as a share of the range


class Look(Config):
    """Of one scan, or one channel of it.

    modality: what its own header says; low, high: percentiles 0.5 and 99.5; air, tissue: shares of the voxels in CT's
    ranges of these; levels: different values; flat: share of neighbours that are equal where they are not background;
    whole: no fractions and nothing negative; coloured: whether red, green and blue differ
    """

    modality: str
    low: float
    high: float
    air: float
    tissue: float
    levels: int
    flat: float
    whole: bool
    coloured: bool

    @property
    def is_ct(self) -> bool:
        """Whether it looks like CT in Hounsfield units that holds air and body."""
        return self.air >= _AIRY and self.tissue >= _FLESHY


class Profile(Config):
    """Of a channel's training scans. ct: share of them that look like CT; levels: the fewest; flat: the most."""

    scans: int
    modalities: list[str]
    ct: float
    low: tuple[float, float]  # least and most of them
    high: tuple[float, float]
    levels: int
    flat: float
    coloured: float


def look_of(scan: Scan) -> Look:
    """Measured on about 130,000 voxels; some milliseconds."""
    grey = scan.voxels[0]
    rows = _rows(grey)
    low, high = (float(value) for value in np.percentile(rows, (0.5, 99.5)))
    values, counts = np.unique(rows, return_counts=True)
    first, second = rows[:, :-1], rows[:, 1:]
    inside = (first != values[counts.argmax()]) | (second != values[counts.argmax()])
    return Look(
        modality=scan.modality,
        low=low,
        high=high,
        air=_share(rows, _AIR),
        tissue=_share(rows, _TISSUE),
        levels=len(values),
        flat=float((first == second)[inside].mean()) if inside.any() else 1.0,
        whole=bool(values[0] >= 0 and np.array_equal(values, np.round(values))),
        coloured=len(scan.voxels) == 3 and _colour(scan.voxels) > _COLOURED * max(high - low, 1e-12),
    )


def profile_of(looks: Sequence[Look]) -> Profile:
    """What scans of one channel have in common; there must be one."""
    lows, highs = ([getattr(look, name) for look in looks] for name in ("low", "high"))
    return Profile(
        scans=len(looks),
        modalities=sorted({look.modality for look in looks if look.modality}),
        ct=float(np.mean([look.is_ct for look in looks])),
        low=(min(lows), max(lows)),
        high=(min(highs), max(highs)),
        levels=min(look.levels for look in looks),
        flat=max(look.flat for look in looks),
        coloured=float(np.mean([look.coloured for look in looks])),
    )


def _rows(grey: NDArray) -> NDArray:
    """Whole rows (N, W) of a scan (D, H, W), evenly spread, so that neighbours stay neighbours."""
    rows = grey.reshape(-1, grey.shape[-1])
    step = max(1, rows.size // _SAMPLE)
    return rows[:: step + 1 - step % 2]  # odd: not along one column of rows


def _share(values: NDArray, within: tuple[float, float]) -> float:
    return float(((values >= within[0]) & (values <= within[1])).mean())


def _colour(voxels: NDArray) -> float:
    red, green, blue = (_rows(channel).astype(np.float64) for channel in voxels)
    return float((np.abs(red - green) + np.abs(green - blue)).mean())
