"""Which voxel sizes are believed, whatever file they come from."""

from collections.abc import Sequence

from scanfoundry.datasets.readers.scan import ReadError

FINEST, COARSEST = 1e-3, 100.0  # mm; beyond lies a unit that was mistaken, and a grid of terabytes
_ROUNDING = 1e-5  # relative: headers hold float32


def check_spacing(spacing: Sequence[float], unit: str = "") -> None:
    """ReadError where a step of `spacing` (D, H, W) in mm lies outside `FINEST` to `COARSEST`.

    unit: what the header gives its lengths in, for the message; '' where it does not say.
    """
    if all(FINEST * (1 - _ROUNDING) <= step <= COARSEST * (1 + _ROUNDING) for step in spacing):
        return  # NaN is not between
    size = " x ".join(f"{step:g}" for step in spacing)
    said = f" by a header that counts in {unit}" if unit else ""
    raise ReadError(
        f"voxels of {size} mm (D x H x W){said}; {FINEST:g} to {COARSEST:g} mm are read: mend the unit or the size "
        "in its header"
    )
