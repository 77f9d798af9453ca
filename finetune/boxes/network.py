"""Boxes as MONAI's detector takes and gives them: tensors, in 2D without depth."""

import numpy as np
import torch
from torch import Tensor

from scanfoundry.finetune.cases.boxes import Boxes, Corners

Found = tuple[Tensor, Tensor, Tensor]  # of one image: corners (N, 2A) in voxels of the patch, scores (N,), labels (N,)
_PLANE = [1, 2, 4, 5]  # of the six corners, those of H and W


def in_plane(corners: Corners) -> Corners:
    """Corners (N, 4) h0 w0 h1 w1 of corners (N, 6)."""
    return corners[:, _PLANE]


def to_network(boxes: Boxes, is_2d: bool) -> tuple[Tensor, Tensor]:
    """Corners (N, 2A) float32 and labels (N,) of boxes in a patch."""
    corners = in_plane(boxes.corners) if is_2d else boxes.corners
    return torch.from_numpy(corners).float(), torch.from_numpy(boxes.labels)


def of_network(found: Found) -> Boxes:
    """What a detector found in a patch; in 2D the boxes reach from 0 to 1 along D."""
    corners, scores, labels = (part.cpu().double().numpy() for part in found)
    full = np.tile([0.0, 0, 0, 1, 1, 1], (len(corners), 1))
    full[:, _PLANE if corners.shape[1] == 4 else range(6)] = corners
    return Boxes(full, labels.astype(np.int64), scores)
