"""Few-shot adaptation to a labelled data set: training, honest numbers, report, prediction."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanfoundry.finetune.config.study import FinetuneConfig
    from scanfoundry.finetune.run_study import RunResult

__all__ = ["predict", "run"]


def run(config: "FinetuneConfig") -> "RunResult":
    """Run the few-shot study that `config` describes; see `running.run`."""
    from scanfoundry.finetune.run_study import run as run_study  # heavy imports wait until they are needed

    return run_study(config)


def predict(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    device: str = "auto",
    format: str = "auto",
    probabilities: bool = False,
    uncertainty: bool = False,
    force: bool = False,
) -> list[Path]:
    """Apply a fine-tuned model to scans and write the predictions; see `prediction.predict`."""
    from scanfoundry.finetune.predict.prediction import predict as predict_scans

    return predict_scans(model, inputs, out, device, format, probabilities, uncertainty, force=force)
