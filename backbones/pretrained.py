"""Pre-trained encoders by the name of an installed model, a run folder or a file, ours or of others.

torch is imported inside of the functions that need it: a list of models does not.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from scanfoundry.configs.errors import UserError

if TYPE_CHECKING:
    from scanfoundry.backbones.models.description import ReleaseInfo
    from scanfoundry.backbones.models.release import Release
    from scanfoundry.backbones.protocol import Encoder

logger = logging.getLogger(__name__)


def load(name_or_file: str | Path) -> tuple[Encoder, ReleaseInfo]:
    """Load a pre-trained encoder.

    Args:
        name_or_file: a run folder, its `model.safetensors`, the name of a model under `models_folder()`, or a file
            that others released (see `scanfoundry.backbones.foreign`, which also takes options). What became of the
            keys of such a file is logged.

    Returns:
        The encoder, and its description.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    from scanfoundry.backbones.models.release import load_encoder

    path = find(name_or_file)
    return load_encoder(path) if is_release(path) else _foreign(path)


def read_release(name_or_file: str | Path) -> Release:
    """Read what `load` loads as weights by key, with their description and the patients that they have seen.

    The patients of a file of others are unknown: its list is empty.

    Args:
        name_or_file: as in `load`.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    from scanfoundry.backbones.models.release import Release, load_release

    path = find(name_or_file)
    if is_release(path):
        return load_release(path)
    from scanfoundry.backbones.foreign import load_foreign_parts

    parts, info, report = load_foreign_parts(path)
    logger.warning("%s", report)  # nothing that happens to weights is silent
    return Release(parts, info.model_copy(update={"parts": tuple(parts)}), [])


def read_about(name_or_file: str | Path) -> tuple[ReleaseInfo, list[str]]:
    """The description and the patients of what `read_release` reads, without the weights where they are ours.

    Args:
        name_or_file: as in `load`.

    Raises:
        UserError: there is no such model, or its description is damaged.
    """
    from scanfoundry.backbones.models.release import read_about

    path = find(name_or_file)
    if is_release(path):
        return read_about(path)
    release = read_release(path)
    return release.info, release.patients


def models_folder() -> Path:
    """The folder of installed models: $SCANFOUNDRY_MODELS, or ~/.cache/scanfoundry/models."""
    return Path(os.environ.get("SCANFOUNDRY_MODELS") or Path.home() / ".cache" / "scanfoundry" / "models")


def find(name_or_file: str | Path) -> Path:
    """The path that a name stands for: itself, or a model under `models_folder()`.

    Raises:
        UserError: neither exists; the message tells how to install a model of this name, or names similar ones.
    """
    for path in (Path(name_or_file), models_folder() / name_or_file):
        if path.exists():
            return path
    raise UserError(
        f"there is no file, run folder or installed model {str(name_or_file)!r} "
        f"(installed models are looked for in {models_folder()}); {_how_to_get(str(name_or_file))}"
    )


def _how_to_get(name: str) -> str:
    """Advice about a name that stands for nothing here: install it, or correct it."""
    from importlib.resources import files

    from scanfoundry.configs.loading import read_yaml
    from scanfoundry.configs.parsing.checking import near

    entries = read_yaml(Path(str(files("scanfoundry.configs"))) / "models.yaml")["models"]
    names = {each for entry in entries for each in (entry["name"], *entry.get("also_known_as", []))}
    if name in names:
        return f"'scanfoundry models get {name}' installs it"
    here = models_folder()
    installed = {path.name for path in here.iterdir()} if here.is_dir() else set()
    hint = "" if "/" in name else near(name, sorted(names | installed))
    return hint.removeprefix("; ") or "check the name"


def is_release(path: Path) -> bool:
    """Whether a path is a release of ours, or would be one if it were whole."""
    from scanfoundry.backbones.models.release import INFO, WEIGHTS

    return path.is_dir() or path.name == INFO or (path.name == WEIGHTS and (path.parent / INFO).exists())


def _foreign(path: Path) -> tuple[Encoder, ReleaseInfo]:
    from scanfoundry.backbones.foreign import load_foreign

    encoder, info, report = load_foreign(path)
    logger.warning("%s", report)  # nothing that happens to weights is silent
    return encoder, info
