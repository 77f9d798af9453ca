"""The labels of one scan, in the scan's own voxel grid."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Point = tuple[float, float, float]  # D, H, W in voxels of the scan
Greys = Literal["", "white", "cut"]
IGNORED = "ignore"  # name of a mask's value that says: not looked at (nnU-Net's)


@dataclass(frozen=True)
class Box:
    """A box `low` <= voxel < `high` (half-open) along D, H, W. Boxes of images have D from 0 to 1."""

    low: Point
    high: Point
    label: str = "finding"


@dataclass(frozen=True)
class Labels:
    """What is known of one scan.

    Attributes:
        mask: (D, H, W) unsigned integers on the scan's grid, or None.
        names: of the mask's values, where known.
        boxes: None where the scan was not searched for any; () where it was, and there is none.
        classes: class by target ({'diagnosis': 'benign'}).
        targets: number by target ({'age': 61.0}).
        left_out: number of boxes that lie outside of the scan or have no extent in it.
        greys: 'white' where the mask was drawn in 0 and 255, which are 0 and 1 in `mask`; 'cut' where it was so drawn
            in a lossy file.
    """

    mask: NDArray[np.unsignedinteger] | None = None
    names: dict[int, str] = field(default_factory=dict)
    boxes: tuple[Box, ...] | None = None
    classes: dict[str, str] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
    left_out: int = 0
    greys: Greys = ""


@dataclass(frozen=True)
class LabelRef:
    """The labels of one source before its scan is read: `Labels` with masks as files. It travels to workers."""

    mask: Path | None = None
    more_masks: tuple[Path, ...] = ()  # of the same scan (x_mask_1.png, ...): each of two values, united with `mask`
    names: dict[int, str] = field(default_factory=dict)
    boxes: tuple[Box, ...] | None = None
    boxes_from_mask: bool = False  # one box per connected component
    flat_boxes: bool = False  # drawn on an image: they know no depth
    size: tuple[int, int] | None = None  # (H, W) that the boxes were drawn on, where their file says so
    classes: dict[str, str] = field(default_factory=dict)
    targets: dict[str, float] = field(default_factory=dict)
