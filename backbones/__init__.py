"""Backbones that pre-training and fine-tuning share, and released weights in and out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanforge.backbones.protocol import Encoder
    from scanforge.backbones.release import ReleaseInfo


def load(name_or_file: str | Path) -> tuple[Encoder, ReleaseInfo]:
    """A pre-trained encoder and what it is.

    name_or_file: a run folder, its `model.safetensors`, or the name of a model under `models_folder()`.
    Raises UserError where there is none, or where it is damaged.
    """
    from scanforge.backbones.release import load_encoder  # torch is imported only when it is needed
    from scanforge.configs.errors import UserError

    for path in (Path(name_or_file), models_folder() / name_or_file):
        if path.exists():
            return load_encoder(path)
    raise UserError(
        f"there is no file, run folder or installed model {str(name_or_file)!r} "
        f"(installed models are looked for in {models_folder()}); check the name"
    )


def models_folder() -> Path:
    """Where installed models lie: $SCANFORGE_MODELS, or ~/.cache/scanforge/models."""
    return Path(os.environ.get("SCANFORGE_MODELS") or Path.home() / ".cache" / "scanforge" / "models")
