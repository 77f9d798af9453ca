"""Make `import torchvision` work beside a CPU-only torch.

PyPI's Linux wheels of torchvision are CUDA builds. Beside a CPU-only torch their compiled operators do not
load, and importing torchvision (hence timm, hence `monai.apps.detection`) raises `RuntimeError: operator
torchvision::nms does not exist`. Only after such a failure, because it would collide with the real
operators, the two schemas that torchvision asks for are registered here, with a plain implementation of nms.
Other compiled operators (`roi_pool`, `deform_conv2d`, `io.read_image`) stay unavailable.
"""

import importlib
import sys

import torch
from torch import Tensor

_library: torch.library.Library | None = None  # the registration ends when the object is collected


def ensure_torchvision() -> None:
    """Import torchvision, and repair it where it is a CUDA build beside a CPU-only torch; call this before timm.

    Calling it again does nothing. Any other failure of the import is raised as it is.
    """
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        _register_operators()
        _import_again()


def _register_operators() -> None:
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _library.impl("nms", plain_nms, "CPU")


def _import_again() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    importlib.import_module("torchvision")
    boxes = importlib.import_module("torchvision.ops.boxes")
    # torchvision's own wrapper refuses to run without its compiled library
    boxes.nms = plain_nms  # type: ignore[attr-defined]
    importlib.import_module("torchvision.ops").nms = plain_nms  # type: ignore[attr-defined]


def plain_nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes: (N, 4) as x1 y1 x2 y2.
        scores: (N,).
        iou_threshold: boxes that overlap a better one more are dropped.

    Returns:
        Indices of the boxes kept, best first.
    """
    order = scores.argsort(descending=True, stable=True)
    sorted_boxes = boxes[order]
    low, high = sorted_boxes[:, :2], sorted_boxes[:, 2:]
    area = (high - low).prod(dim=1)
    alive = torch.ones(len(order), dtype=torch.bool, device=boxes.device)
    kept = []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(i)
        overlap = torch.minimum(high[i], high[i + 1 :]) - torch.maximum(low[i], low[i + 1 :])
        intersection = overlap.clamp_(min=0).prod(dim=1)
        iou = intersection / (area[i] + area[i + 1 :] - intersection)
        alive[i + 1 :] &= ~(iou > iou_threshold)
    return order[torch.tensor(kept, dtype=torch.int64, device=boxes.device)]
