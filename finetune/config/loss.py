"""Options of the loss of fine-tuning; which of them a task reads, its own configuration says."""

from typing import Literal

from pydantic import Field, model_validator

from scanfoundry.configs.base import Config


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
