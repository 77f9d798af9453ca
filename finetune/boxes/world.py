"""Found boxes as JSON: in voxels of the file, and where the file knows its place, in the world."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.readers.geometry import LPS_TO_RAS
from scanfoundry.finetune.cases.boxes import Boxes

CONVENTIONS = {
    "box": "d0 h0 w0 d1 h1 w1 in voxels of the file (slice, row, column of the array that it holds; of a DICOM series, "
    "of its conversion by dcm2niix), half-open: voxel i covers [i, i + 1)",
    "world": "mm in DICOM's patient space, LPS: x to the patient's left, y to the back, z to the head (RAS is the same "
    "with x and y negated). size: along the box's edges, whose unit directions are axes. null: the file is an image",
}


def as_json(found: Boxes, scan: Scan, classes: Sequence[str]) -> list[dict[str, Any]]:
    """One entry for each box, in their order."""
    return [
        {
            "label": classes[int(label)],
            "score": float(score),
            "box": [float(x) for x in box],
            "world": None if scan.affine is None else world_box(box, scan.affine),
        }
        for box, score, label in zip(found.corners, found.surety, found.labels, strict=True)
    ]


def world_box(box: npt.NDArray[np.float64], affine: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Centre, size, edge directions and the eight corners of a box of voxels, in mm, LPS."""
    into = LPS_TO_RAS @ affine  # from RAS to LPS is the same turn
    # From edges to the centres that the affine speaks of, and from (d, h, w) to (x, y, z).
    low, high = (box[:3] - 0.5)[::-1], (box[3:] - 0.5)[::-1]
    edges = into[:3, :3] * (high - low)
    corners = [np.where([x, y, z], high, low) for z in (0, 1) for y in (0, 1) for x in (0, 1)]
    return {
        "centre": _numbers(into[:3, :3] @ ((low + high) / 2) + into[:3, 3]),
        "size": _numbers(np.linalg.norm(edges, axis=0)),
        "axes": [_numbers(axis / np.linalg.norm(axis), 6) for axis in into[:3, :3].T],
        "corners": [_numbers(into[:3, :3] @ corner + into[:3, 3]) for corner in corners],
    }


def _numbers(vector: npt.NDArray[np.float64], digits: int = 3) -> list[float]:
    return [round(float(x), digits) + 0.0 for x in vector]
