"""Options of the loss of fine-tuning, and which task reads which."""

from typing import Literal

from pydantic import Field, model_validator

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError

READ_BY = {
    "segmentation": {"term", "gamma", "label_smoothing", "class_weights", "dice"},
    "classification": {"term", "gamma", "label_smoothing", "class_weights"},
    "regression": {"smooth_l1_beta"},
    "detection": set[str](),
}


class LossConfig(Config):
    """What is minimised. Segmentation: `dice` x soft Dice + `term`, at every resolution of the decoder.
    Classification: `term`. Regression: smooth L1. Detection has its own two terms and no options."""

    term: Literal["cross_entropy", "focal", "dual_focal"] = "cross_entropy"  # of each voxel, or of each scan
    gamma: float | None = Field(default=None, ge=0)  # of the focal terms; None: 2 (focal), 5 (dual_focal)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)  # share of the target spread over all classes
    class_weights: Literal["none", "inverse", "inverse_sqrt", "effective"] | list[float] = "none"
    dice: float = Field(default=1.0, ge=0)  # weight of soft Dice
    smooth_l1_beta: float = Field(default=1.0, gt=0)  # errors below are squared; in standard deviations of the target

    @model_validator(mode="after")
    def _consistent(self) -> "LossConfig":
        if self.term == "cross_entropy" and self.gamma is not None:
            raise ValueError("gamma belongs to term focal or dual_focal")
        if self.term != "cross_entropy" and self.label_smoothing:
            raise ValueError("label_smoothing belongs to term cross_entropy")
        if isinstance(self.class_weights, list) and not all(0 < w < float("inf") for w in self.class_weights):
            raise ValueError("class_weights are positive numbers")
        return self

    def check_options_read(self, task: str) -> None:
        """UserError where an option is set that this task does not read."""
        default = LossConfig()
        changed = {name for name in type(self).model_fields if getattr(self, name) != getattr(default, name)}
        unread = sorted(changed - READ_BY[task])
        if unread:
            known = ", ".join(sorted(READ_BY[task])) or "none"
            raise UserError(f"loss.{unread[0]} has no meaning for {task} (it reads: {known}); leave it out")
        if task == "segmentation" and self.class_weights == "effective":
            raise UserError("loss.class_weights=effective counts scans, not voxels; for segmentation: inverse_sqrt")
