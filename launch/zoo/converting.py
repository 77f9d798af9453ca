"""`scanfoundry models export --to onnx|monai-bundle`: a fine-tuned model for software without scanfoundry."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from scanfoundry.configs.errors import UserError

ExportFormat = Literal["release", "onnx", "monai-bundle"]
TAKEN: dict[str, set[str]] = {
    "release": {"push", "private", "licence", "intended-use", "citation", "metrics", "without-patients"},
    "onnx": {"check"},
    "monai-bundle": {"licence", "intended-use", "citation"},
}


@dataclass(frozen=True)
class CardTexts:
    """What was said of the model on the command line, '' where nothing was."""

    licence: str = ""
    intended_use: str = ""
    citation: str = ""


def check_same_options(to: ExportFormat, given: dict[str, object]) -> None:
    """UserError where an option was given that this target has no use for."""
    for name, value in given.items():
        if value and name not in TAKEN[to]:
            fitting = " or ".join(target for target, taken in TAKEN.items() if name in taken)
            raise UserError(f"--{name} goes with --to {fitting}, not with {to}: leave it out")


def convert(run: Path, out: Path, to: ExportFormat, check: Path | None, texts: CardTexts) -> str:
    """Write the model into a new folder; gives what to tell. UserError where the run is no fine-tuned model."""
    folder = run if run.is_dir() else run.parent
    if _is_encoder(folder):
        raise UserError(f"{run} is a pre-trained encoder, which predicts nothing: fine-tune it, or use --to release")
    if to == "onnx":
        from scanfoundry.finetune.export.onnx import export_onnx

        exported = export_onnx(folder, out, check)
        found = ", ".join(f"{value:.1e} on {name}" for name, value in exported.differences.items())
        return f"{out}: onnxruntime is as torch to {found} (allowed {exported.allowed:.1e})"
    from scanfoundry.finetune.export.bundle import Terms, export_bundle
    from scanfoundry.finetune.export.bundle_texts import RUN

    export_bundle(folder, out, Terms(texts.licence, texts.intended_use, texts.citation))
    return f"{out}: to run it, there: {RUN}"


def _is_encoder(folder: Path) -> bool:
    from scanfoundry.backbones.models.release import INFO  # a heavy import, which a list of models does not need

    try:
        described = json.loads((folder / INFO).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False  # loading says what is wrong
    return isinstance(described, dict) and described.get("kind") != "finetuned"
