"""Pixels of a CT that mark what was never scanned."""

import numpy as np
from numpy.typing import NDArray

from scanforge.datasets.readers.dicom.headers import Survey

AIR = -1024  # HU


def without_padding(voxels: NDArray, file: Survey) -> NDArray:
    """Voxels in HU; those that the header marks as padding become air where they lie below it.

    Values such as -3024 outside the round field of view are no density, and they would widen every statistic of the
    scan. Nothing else is touched: real voxels below -1024 stay.
    """
    if file.padding is None or voxels.dtype.kind == "u":
        return voxels
    marked = file.padding * (1.0 if file.slope is None else file.slope) + (file.intercept or 0.0)
    return np.where(voxels == marked, np.asarray(AIR, voxels.dtype), voxels) if marked < AIR else voxels
