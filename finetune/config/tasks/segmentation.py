"""What a segmentation is told, and what it reads of a study."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.loss import LossConfig
from scanfoundry.finetune.config.tasks.labels import ReadsMasks


class SegmentationTask(ReadsMasks):
    """Label maps of integers, 0 the background."""

    loss_options: ClassVar[frozenset[str]] = frozenset({"term", "gamma", "label_smoothing", "class_weights", "dice"})
    unread: ClassVar[Mapping[str, str]] = {}
    class_scores: ClassVar[bool] = True
    self_training: ClassVar[bool] = True
    windows: ClassVar[bool] = True
    pipeline_tag: ClassVar[str | None] = "image-segmentation"

    name: Literal["segmentation"] = "segmentation"
    tolerance: float = Field(default=1.0, gt=0)  # mm: a surface this near counts as right in the surface Dice (NSD)

    def check_loss(self, loss: LossConfig) -> None:
        """As of every task; weights by the number of cases have no meaning for voxels."""
        super().check_loss(loss)
        if loss.class_weights == "effective":
            raise UserError("loss.class_weights=effective counts scans, not voxels; for segmentation: inverse_sqrt")
