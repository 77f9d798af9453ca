"""Few-shot adaptation to a labelled data set: training, honest numbers, report, prediction."""

from typing import Any

__all__ = ["predict", "run"]


def __getattr__(name: str) -> Any:
    # `scanforge --help` must not wait for torch; the submodule `predict` gives way to its function.
    if name == "run":
        from scanforge.finetune.running import run

        return run
    if name == "predict":
        from scanforge.finetune.predict import predict

        return predict
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
