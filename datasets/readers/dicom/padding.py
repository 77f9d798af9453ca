"""Pixels of a CT that mark what was never scanned."""

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.dicom.headers import Survey

AIR = -1024  # HU
_NEAR = 64  # HU that lossy compression moves a value by, at most places


def without_padding(voxels: NDArray, file: Survey) -> NDArray:
    """Voxels in HU; those that the header marks as padding become air where they lie below it.

    Values such as -3024 outside the round field of view are no density, and they would widen every statistic of the
    scan. Nothing else is touched: real voxels below -1024 stay. But lossy compression blurs the mark: single pixels of
    the padding would hit it, their neighbours miss it. There everything below air is padding or its rim.
    """
    if file.padding is None or voxels.dtype.kind == "u":
        return voxels
    slope, intercept = 1.0 if file.slope is None else file.slope, file.intercept or 0.0
    low, high = sorted(value * slope + intercept for value in file.padding)
    if low >= AIR:
        return voxels
    below = min(high, np.nextafter(AIR, low))
    marked = voxels == low if low == high else (voxels >= low) & (voxels <= below)
    if file.lossy or _is_blurred(voxels, marked, low - _NEAR, min(below, high + _NEAR)):
        return np.maximum(voxels, np.asarray(AIR, voxels.dtype))
    return np.where(marked, np.asarray(AIR, voxels.dtype), voxels)


def _is_blurred(voxels: NDArray, marked: NDArray[np.bool_], low: float, high: float) -> bool:
    """Whether values beside the mark occur too: nobody says of all files that they were compressed with loss."""
    hits = np.count_nonzero(marked)
    return bool(hits > 0 and np.count_nonzero((voxels >= low) & (voxels <= high)) > hits)
