"""Released weights in and out: `model.safetensors` (the encoder alone) and the `model.json` beside it.

`model.json` carries the checksum of the weights and of the patient list, so that a damaged or mixed-up file
is refused instead of loaded. Files are written beside their place and renamed.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scanfoundry.backbones.models.tensor_file import write_tensors
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import BackboneConfig, build
from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import make_anew, opened_once, sha256_of

FORMAT_VERSION: Literal[1] = 1
WEIGHTS, INFO, PATIENTS = "model.safetensors", "model.json", "patients.txt"


class SourceRecord(Config):
    """One data source of the pre-training and the sha256 of its manifest."""

    name: str
    manifest_sha256: str
    site: str = ""  # fingerprint of the key that its patients are hashed with
    scans: int | None = None


class ReleaseInfo(Config):
    """All that someone needs to use the weights: architecture, preprocessing, origin, terms."""

    model_config = ConfigDict(defer_build=True)  # until what plug-ins add can be imported, see `ByName`
    format_version: Literal[1] = FORMAT_VERSION
    backbone: BackboneConfig
    objective: str | None = None
    step: int = 0
    averaged: float | None = None  # momentum, where the weights are an exponential moving average over the steps
    intensity: dict[str, Any] = Field(default_factory=dict)  # the IntensityConfig of the pre-training, as JSON
    crop_2d: tuple[int, int] | None = None
    crop_3d: tuple[int, int, int] | None = None
    spacing_mm: tuple[float, float, float] | None = None  # (D, H, W) that it was trained at, where that is one
    axis_order: Literal["D,H,W"] = "D,H,W"
    sources: tuple[SourceRecord, ...] = ()
    patients: int = 0  # lines of patients.txt: keyed hashes of the patients trained on
    patients_withheld: int = 0  # trained on, but left out of patients.txt of this copy: overlap cannot be checked
    licence: str = ""
    citation: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    weights_sha256: str = ""  # filled in by save_release
    patients_sha256: str = ""  # filled in by save_release


@dataclass(frozen=True)
class Release:
    """A release as read from disk: encoder weights, what they are, and whom they have seen."""

    state_dict: dict[str, Tensor]
    info: ReleaseInfo
    patients: list[str]


def save_release(folder: Path, state_dict: dict[str, Tensor], info: ReleaseInfo, patients: list[str]) -> Path:
    """Write the encoder's weights, `model.json` and `patients.txt` into a folder; gives the weights' path.

    Raises:
        ValueError: the weights do not fit `info.backbone`: such a release could not be loaded.
    """
    check_fits(state_dict, info.backbone)
    folder.mkdir(parents=True, exist_ok=True)
    parts = {name: folder / f".{name}.{os.getpid()}.part" for name in (WEIGHTS, PATIENTS, INFO)}
    try:
        for part in parts.values():
            make_anew(part)
        write_tensors(parts[WEIGHTS], state_dict, {"format": "pt"})
        parts[PATIENTS].write_text("".join(f"{patient}\n" for patient in sorted(patients)))
        sums = {f"{n}_sha256": sha256_of(parts[p]) for n, p in (("weights", WEIGHTS), ("patients", PATIENTS))}
        full = info.model_copy(update={"patients": len(patients), **sums})
        parts[INFO].write_text(full.model_dump_json(indent=2) + "\n")
        for name, part in parts.items():  # model.json last: until then the checksums refuse the mixture
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return folder / WEIGHTS


def load_release(path: Path) -> Release:
    """Read a release from its folder, its `model.safetensors` or its `model.json`.

    Raises:
        UserError: a file is missing, truncated, corrupt or of an unknown format version.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    for name in (INFO, WEIGHTS, PATIENTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a released model: {name} is missing; give the folder that has it")
    info = read_info(folder / INFO)
    try:
        with opened_once(folder / WEIGHTS) as (stream, same):
            _check_intact(folder / WEIGHTS, sha256_of(stream), info.weights_sha256)
            state_dict = load_file(same)
        patients = (folder / PATIENTS).read_bytes()
        _check_intact(folder / PATIENTS, hashlib.sha256(patients).hexdigest(), info.patients_sha256)
        return Release(state_dict, info, patients.decode("ascii").split())
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{folder / WEIGHTS} cannot be read ({error}); copy or download it again") from error


def _check_intact(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(
            f"{path} is damaged or not the file that {INFO} describes "
            "(its checksum differs); copy or download the release again"
        )


def read_info(path: Path) -> ReleaseInfo:
    """Read and check a `model.json`.

    Raises:
        UserError: it is corrupt or of another format version.
    """
    try:
        raw = json.loads(path.read_text())
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); copy or download the release again") from error
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this scanfoundry reads {FORMAT_VERSION}; "
            "install the scanfoundry that wrote it"
        )
    try:
        return ReleaseInfo.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; copy or download the release again") from error


def load_encoder(path: Path) -> tuple[Encoder, ReleaseInfo]:
    """The encoder of a release, built from its own description, and that description."""
    release = load_release(path)
    try:
        check_fits(release.state_dict, release.info.backbone)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {INFO} and {WEIGHTS} are not of one model") from error
    with torch.device("meta"):  # neither draws nor allocates weights that are replaced at once
        encoder = build(release.info.backbone)
    encoder.load_state_dict(release.state_dict, assign=True)
    return encoder.float(), release.info


def check_fits(state_dict: dict[str, Tensor], config: BackboneConfig) -> None:
    """Raise ValueError, naming the first difference, where weights are not exactly those of a backbone."""
    with torch.device("meta"):
        expected = {key: value.shape for key, value in build(config).state_dict().items()}
    given = {key: value.shape for key, value in state_dict.items()}
    for key in sorted(expected.keys() | given.keys()):
        if expected.get(key) != given.get(key):
            want, have = (tuple(shapes[key]) if key in shapes else "absent" for shapes in (expected, given))
            raise ValueError(f"the weights do not fit {config!r}: {key} is {have}, should be {want}")
