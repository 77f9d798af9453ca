"""`origin.json` beside an installed model: where it came from, and what is known about it."""

import json
from pathlib import Path

from pydantic import ValidationError

from scanfoundry.configs.base import Config

FILE = "origin.json"


class Origin(Config):
    """Of a model that was converted from a file of others."""

    name: str  # in the catalogue
    title: str
    page: str
    fetched_from: str
    file: str
    bytes: int
    sha256: str  # of the file, as it was seen
    verified_by: str  # '' where there was nothing to hold it against
    trained_on: str
    preprocessing: str
    licence: str
    commercial_use: str
    attribution: str
    citation: str
    report: str  # what became of the file's keys


def read_origin(folder: Path) -> Origin | None:
    """The origin of an installed model, or None where the folder has none that can be read."""
    try:
        return Origin.model_validate(json.loads((folder / FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError):
        return None
