"""The released models that scanfoundry knows by name: `configs/models.yaml`, checked."""

import difflib
import re
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, HttpUrl, TypeAdapter, model_validator

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check, read_yaml

Triple = tuple[float, float, float]
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")


class Download(Config):
    """The one file that a model is made from. What nobody has published is null, and then not verified."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]  # its name, on a mirror too
    urls: Annotated[tuple[str, ...], Field(min_length=1)]  # tried in this order
    bytes: Annotated[int, Field(ge=1)] | None = None
    about: str = ""  # a size in words, where the exact one is not known
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    md5_prefix: Annotated[str, Field(pattern=r"^[0-9a-f]{6,32}$")] | None = None
    evidence: str  # where bytes and sums are from

    @model_validator(mode="after")
    def _addresses(self) -> "Download":
        for url in self.urls:
            TypeAdapter(HttpUrl).validate_python(url)
        return self


class CatalogueModel(Config):
    """One model: what it is, whose it is, on which terms, and where to get it."""

    name: str
    family: str
    title: str
    backbone: Annotated[dict[str, Any], Field(min_length=1)]  # what the file must turn out to be: name, size ...
    objective: str
    trained_on: str
    preprocessing: str
    spacing_mm: Triple | None = None  # (D, H, W) that it was trained at, where that is one
    in_channels: Annotated[int, Field(ge=1)] = 1  # that it is installed for, unless the user says otherwise
    licence: str  # as SPDX or Hugging Face write it
    commercial_use: Literal["yes", "no", "unknown"]
    attribution: str = ""  # what the licence asks for beside the citation
    citation: str
    page: str  # for people: what a browser opens
    also_known_as: tuple[str, ...] = ()
    download: Download


class _File(Config):
    models: tuple[CatalogueModel, ...]

    @model_validator(mode="after")
    def _names(self) -> "_File":
        names = [entry.name for entry in self.models]
        if len(set(names)) < len(names) or not all(_NAME.fullmatch(name) for name in names):
            raise ValueError("names must differ, of lower-case letters, digits, '.' and '-'")
        return self


def catalogue(path: Path | None = None) -> dict[str, CatalogueModel]:
    """The entries by name, of the packaged file or another; UserError where it is wrong."""
    path = path or Path(str(files("scanfoundry.configs"))) / "models.yaml"
    return {entry.name: entry for entry in check(_File, read_yaml(path), str(path)).models}


def find_model(name: str, known: dict[str, CatalogueModel] | None = None) -> CatalogueModel:
    """The model of a name, or of a name that others know it by.

    Raises:
        UserError: there is none; the text names the nearest one.
    """
    known = catalogue() if known is None else known
    for entry in known.values():
        if name in (entry.name, *entry.also_known_as):
            return entry
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else "'scanfoundry models list' has the names"
    raise UserError(f"no model '{name}' in the catalogue; {hint}")


def models_of_family(family: str | None) -> list[CatalogueModel]:
    """All entries, or those of a family; UserError for one that does not exist."""
    entries = list(catalogue().values())
    families = sorted({entry.family for entry in entries})
    if family is None:
        return entries
    chosen = [entry for entry in entries if entry.family.lower() == family.lower()]
    if not chosen:
        raise UserError(f"no family '{family}' in the catalogue; there are {', '.join(families)}")
    return chosen


def model_by_sha256(digest: str) -> CatalogueModel | None:
    """The entry whose file has this checksum."""
    return next((entry for entry in catalogue().values() if entry.download.sha256 == digest), None)


def download_size(entry: CatalogueModel) -> str:
    """The size of the download, for people."""
    size = entry.download.bytes
    return human(size) if size else entry.download.about or "unknown"


def human(size: float) -> str:
    """Bytes in units of 10^3, with three digits."""
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"
