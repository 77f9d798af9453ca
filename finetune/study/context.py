"""Where and how a trial runs."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scanfoundry.finetune.model_file import Seen
from scanfoundry.finetune.study.budget import Budget
from scanfoundry.finetune.study.sample_cache import SampleCache
from scanfoundry.finetune.training.features import FeatureStore
from scanfoundry.finetune.training.saving import SnapshotFolder
from scanfoundry.finetune.training.setup import TrainProgress, TrainSetup


@dataclass(frozen=True)
class TrialContext:
    """Where a trial reads and writes, what it is trained with, and what is called as it proceeds."""

    folder: Path
    digest: str  # of all that the result depends on
    keep_weights: bool
    seen: Seen  # whom its models will have seen
    setup: TrainSetup  # but for its time, where there is a budget
    budget: Budget | None
    samples: SampleCache
    store: FeatureStore  # of this checkpoint at this plan
    progress: TrainProgress
    tested: Callable[[int], None]
    saved: SnapshotFolder  # what an earlier start of the trial left, and what this one leaves
    teacher: dict[str, Any] | None = None  # what the model's description says of it, where one takes part
