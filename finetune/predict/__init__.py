"""Prediction with a fine-tuned model: scans in, files in the geometry of each scan out."""

from collections.abc import Sequence
from pathlib import Path

__all__ = ["predict"]


def predict(
    model: Path | str,
    inputs: Sequence[Path | str],
    out: Path | str,
    device: str = "auto",
    format: str = "auto",
    probabilities: bool = False,
    uncertainty: bool = False,
    force: bool = False,
) -> list[Path]:
    """Apply a fine-tuned model to scans and write the predictions; see `prediction.predict`."""
    # Heavy imports wait until they are needed.
    from scanfoundry.finetune.predict.prediction import predict as predict_scans

    paths = [Path(path) for path in inputs]
    return predict_scans(Path(model), paths, Path(out), device, format, probabilities, uncertainty, force=force)
