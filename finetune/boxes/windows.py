"""Where training patches and sliding windows lie in a scan."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scanfoundry.configs.geometry import PositiveSize3D
from scanfoundry.datasets.augment.window import PatchWindow
from scanfoundry.finetune.boxes.geometry import centres, intersection, volumes
from scanfoundry.finetune.cases.boxes import Boxes, Corners

SEEN_SHARE = 0.75  # a window looks at a place if it holds so much of the box there
PAIRS = 2**20  # of boxes and windows that are compared at a time: memory
WEIGHT_SIGMA = 0.4  # of the patch: a box near a window's border counts less (Jaeger et al. 2019)


def training_centre(
    boxes: Boxes, shape: PositiveSize3D, patch: PositiveSize3D, rng: np.random.Generator, fore: float
) -> npt.NDArray[np.float64]:
    """The middle of a training patch, on the voxel grid, and such that the patch stays inside the scan (D, H, W).

    With probability `fore` a random voxel of a random box (of a random class that the scan has) lies in the middle
    half of the patch; else it is anywhere. In the middle half, not in the middle: windows do not know where findings
    are.
    """
    size, half = np.array(shape, float), np.array(patch) / 2
    low, high = np.minimum(half, size / 2), np.maximum(size - half, size / 2)
    centre = rng.uniform(low, high)
    if rng.random() < fore and len(boxes):
        own = np.flatnonzero(boxes.labels == rng.choice(np.unique(boxes.labels)))
        box = boxes.corners[rng.choice(own)]
        spot = rng.uniform(box[:3], box[3:]) + rng.uniform(-0.5, 0.5, 3) * half
        centre = np.clip(spot, low, high)
    return np.floor(centre) + (half % 1)


def quarter_turn(rng: np.random.Generator, pairs: list[tuple[int, int]]) -> npt.NDArray[np.float64]:
    """The matrix that exchanges each of the pairs of axes with probability 1/2: with mirroring, all quarter turns."""
    matrix = np.eye(3)
    for i, j in pairs:
        if rng.random() < 0.5:
            matrix[[i, j]] = matrix[[j, i]]
    return matrix


def turnable(
    flip_axes: list[int], spacing: tuple[float, float, float], patch: PositiveSize3D | None
) -> list[tuple[int, int]]:
    """Pairs of axes that may be exchanged: the anatomy may be mirrored along both, and a voxel is as long on both.

    patch: given where the scan must stay inside it, which then is as long on both too.
    """
    pairs = [(i, j) for i in sorted(flip_axes) for j in sorted(flip_axes) if i < j]
    return [
        (i, j)
        for i, j in pairs
        if np.isclose(spacing[i], spacing[j], rtol=0.01) and (patch is None or patch[i] == patch[j])
    ]


def sliding_windows(shape: PositiveSize3D, patch: PositiveSize3D, overlap: float) -> list[PatchWindow]:
    """Windows that cover a scan (D, H, W), neighbours sharing at least `overlap` of a patch; on the voxel grid.

    A scan smaller than the patch along an axis lies in its middle there.
    """
    starts = []
    for size, wanted in zip(shape, patch, strict=True):
        rest = size - wanted
        n = 1 if rest <= 0 else int(np.ceil(rest / max(1.0, wanted * (1 - overlap)))) + 1
        starts.append([rest // 2] if rest <= 0 else [round(x) for x in np.linspace(0, rest, n)])
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3)
    return [PatchWindow(corner + np.array(patch) / 2, np.eye(3), patch) for corner in corners]


def looked_at(boxes: Corners, windows: Sequence[PatchWindow]) -> npt.NDArray[np.float64]:
    """How many of the windows hold SEEN_SHARE of each box (N, 6) at least; one at least."""
    places = np.array([[*(w.centre - np.array(w.size) / 2), *(w.centre + np.array(w.size) / 2)] for w in windows])
    seen = np.ones(len(boxes))
    step = max(1, PAIRS // len(places))
    for start in range(0, len(boxes), step):
        some = boxes[start : start + step]
        share = intersection(some, places) / np.maximum(volumes(some), 1e-12)[:, None]
        seen[start : start + step] = np.maximum((share >= SEEN_SHARE).sum(1), 1)
    return seen


def trust(boxes: Corners, window: PatchWindow) -> npt.NDArray[np.float64]:
    """Weights (N,) of boxes (N, 6): 1 in the middle of their window, less towards its border."""
    apart = (centres(boxes) - window.centre) / (WEIGHT_SIGMA * np.array(window.size))
    return np.exp(-0.5 * (apart**2).sum(1))
