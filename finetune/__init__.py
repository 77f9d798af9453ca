"""Few-shot adaptation to a labelled data set: training, honest numbers, report, prediction."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.finetune.run_study import RunResult

__all__ = ["run"]


def run(config: "FinetuneConfig") -> "RunResult":
    """Run the few-shot study that `config` describes; see `run_study.run`."""
    from scanfoundry.finetune.run_study import run as run_study  # heavy imports wait until they are needed

    return run_study(config)
