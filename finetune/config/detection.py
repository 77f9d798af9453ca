"""What detection plans from the training boxes, as part of `model.json`."""

from scanfoundry.configs.base import Config

LEAST_SAMPLED = 32  # anchors of an image that the loss looks at, at least


class DetectionPlan(Config):
    """Settled from the training cases of one cell; part of `model.json`."""

    whole_scan: bool  # scaled to fit the patch; otherwise patches at the plan's spacing, and sliding windows
    reason: str  # why
    strides: list[tuple[int, int, int]]  # (D, H, W) of the pyramid's levels, finest first
    boxes: int  # that it was planned from
    anchor_iou: float  # mean over them of the best anchor's IoU
    sampled: int = LEAST_SAMPLED  # anchors of an image that the loss looks at
