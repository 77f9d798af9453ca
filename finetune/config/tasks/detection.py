"""What a detection is told, and what it reads of a study."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from scanfoundry.finetune.config.tasks.base import NO_LABEL_MAPS, NO_PROBABILITIES
from scanfoundry.finetune.config.tasks.labels import ReadsBoxes


class DetectionTask(ReadsBoxes):
    """Boxes of findings: from COCO, Pascal VOC or CSV, or of masks."""

    unread: ClassVar[Mapping[str, str]] = NO_LABEL_MAPS | NO_PROBABILITIES | {
        "augmentation.rotation": "a turned box is no box",
        "augmentation.elastic": "a deformed box is no box",
    }  # fmt: skip
    windows: ClassVar[bool] = True
    pipeline_tag: ClassVar[str | None] = "object-detection"

    name: Literal["detection"] = "detection"
    whole_scan: bool | None = None  # scans scaled to fit the patch, or windows; None: by the size of the findings
    score_threshold: float = Field(default=0.05, ge=0, lt=1)  # boxes below are not kept
    boxes_per_scan: int = Field(default=50, ge=1)
