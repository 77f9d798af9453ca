"""Backbones that pre-training and fine-tuning share, and released weights in and out."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scanforge.backbones.protocol import Encoder
    from scanforge.backbones.release import Release, ReleaseInfo


def load(name_or_file: str | Path) -> tuple[Encoder, ReleaseInfo]:
    """A pre-trained encoder and what it is.

    name_or_file: a run folder, its `model.safetensors`, the name of a model under `models_folder()`, or a file that
    others released (see `scanforge.backbones.foreign`, which also takes options): what became of its keys is then
    printed to stderr. Raises UserError where there is none, or where it is damaged.
    """
    from scanforge.backbones.release import load_encoder  # torch is imported only when it is needed

    path = find(name_or_file)
    return load_encoder(path) if is_release(path) else _foreign(path)


def read_release(name_or_file: str | Path) -> Release:
    """What `load` reads, as weights by key with their description and the patients they have seen.

    Whom a file of others was trained on is unknown: its list is empty.
    """
    from scanforge.backbones.release import Release, load_release

    path = find(name_or_file)
    if is_release(path):
        return load_release(path)
    encoder, info = _foreign(path)
    return Release(encoder.state_dict(), info, [])


def models_folder() -> Path:
    """Where installed models lie: $SCANFORGE_MODELS, or ~/.cache/scanforge/models."""
    return Path(os.environ.get("SCANFORGE_MODELS") or Path.home() / ".cache" / "scanforge" / "models")


def find(name_or_file: str | Path) -> Path:
    """The path that a name stands for: itself, or a model under `models_folder()`; UserError where neither exists."""
    from scanforge.configs.errors import UserError

    for path in (Path(name_or_file), models_folder() / name_or_file):
        if path.exists():
            return path
    raise UserError(
        f"there is no file, run folder or installed model {str(name_or_file)!r} "
        f"(installed models are looked for in {models_folder()}); {_how_to_get(str(name_or_file))}"
    )


def _how_to_get(name: str) -> str:
    """What to do about a name that stands for nothing here: install it, or correct it."""
    from importlib.resources import files

    from scanforge.configs.checking import near
    from scanforge.configs.loading import read_yaml

    entries = read_yaml(Path(str(files("scanforge.configs"))) / "models.yaml")["models"]
    names = {each for entry in entries for each in (entry["name"], *entry.get("also_known_as", []))}
    if name in names:
        return f"'scanforge models get {name}' installs it"
    here = models_folder()
    installed = {path.name for path in here.iterdir()} if here.is_dir() else set()
    hint = "" if "/" in name else near(name, sorted(names | installed))
    return hint.removeprefix("; ") or "check the name"


def is_release(path: Path) -> bool:
    """Whether a path is a release of ours, or would be one if it were whole."""
    from scanforge.backbones.release import INFO, WEIGHTS

    return path.is_dir() or path.name == INFO or (path.name == WEIGHTS and (path.parent / INFO).exists())


def _foreign(path: Path) -> tuple[Encoder, ReleaseInfo]:
    from scanforge.backbones.foreign import load_foreign

    encoder, info, report = load_foreign(path)
    print(report, file=sys.stderr)  # nothing that happens to weights is silent
    return encoder, info
