"""What a classification is told, and what it reads of a study."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from scanfoundry.finetune.config.tasks.base import NO_LABEL_MAPS, WHOLE_SCANS
from scanfoundry.finetune.config.tasks.labels import ReadsClasses


class ClassificationTask(ReadsClasses):
    """One class per scan, from a column of a list, an archive, or shards."""

    loss_options: ClassVar[frozenset[str]] = frozenset({"term", "gamma", "label_smoothing", "class_weights"})
    unread: ClassVar[Mapping[str, str]] = NO_LABEL_MAPS | WHOLE_SCANS
    class_scores: ClassVar[bool] = True
    mixing: ClassVar[bool] = True
    probes: ClassVar[bool] = True
    pipeline_tag: ClassVar[str | None] = "image-classification"

    name: Literal["classification"] = "classification"
