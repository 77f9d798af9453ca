"""What a regression is told, and what it reads of a study."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from scanfoundry.finetune.config.tasks.base import NO_LABEL_MAPS, NO_PROBABILITIES, WHOLE_SCANS
from scanfoundry.finetune.config.tasks.labels import ReadsValues


class RegressionTask(ReadsValues):
    """One number per scan, from a column of a list, an archive, or shards."""

    loss_options: ClassVar[frozenset[str]] = frozenset({"smooth_l1_beta"})
    unread: ClassVar[Mapping[str, str]] = NO_LABEL_MAPS | NO_PROBABILITIES | WHOLE_SCANS

    name: Literal["regression"] = "regression"
