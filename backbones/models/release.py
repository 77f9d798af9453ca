"""A model on disk: `model.safetensors`, the `model.json` that describes it, and whom it has seen (`patients.txt`).

The weights have named parts (`parts.py`). `model.json` carries the checksum of the weights and of the patient list,
so that a damaged or mixed-up file is refused instead of loaded. Files are written beside their place and renamed.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from scanfoundry.backbones.models.description import (
    FORMAT_VERSION,
    ReleaseInfo,
    finetuned_info,
    is_finetuned,
    read_description,
    read_info,
)
from scanfoundry.backbones.models.parts import Parts, from_file, to_file
from scanfoundry.backbones.models.patients import PatientList
from scanfoundry.backbones.models.tensor_file import write_tensors
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import BackboneConfig, build
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import make_anew, opened_once, sha256_of

WEIGHTS, INFO, PATIENTS = "model.safetensors", "model.json", "patients.txt"


@dataclass(frozen=True)
class Release:
    """A release as read from disk: its weights by part, what they are, and whom they have seen."""

    parts: Parts
    info: ReleaseInfo
    patients: list[str]

    @property
    def encoder(self) -> dict[str, Tensor]:
        """The encoder's weights."""
        return self.parts["encoder"]


def save_release(folder: Path, parts: Parts, info: ReleaseInfo, patients: Iterable[str] | PatientList) -> Path:
    """Write the weights, `model.json` and `patients.txt` into a folder; gives the weights' path.

    Raises:
        ValueError: the weights do not fit `info.backbone`: such a release could not be loaded.
    """
    check_fits(parts, info.backbone)
    seen = PatientList.of(patients)
    facts = {"format_version": FORMAT_VERSION, "parts": tuple(parts), "patients": seen.count}

    def described(weights_sha256: str, patients_sha256: str) -> str:
        sums = {"weights_sha256": weights_sha256, "patients_sha256": patients_sha256}
        return info.model_copy(update={**facts, **sums}).model_dump_json(indent=2)

    write_model(folder, to_file(parts), seen, described)
    return folder / WEIGHTS


def write_model(
    folder: Path,
    tensors: dict[str, Tensor],
    patients: Iterable[str] | PatientList,
    describe: Callable[[str, str], str],
) -> None:
    """Write the three files of a model on disk, each whole, so that a kill leaves the old model or a refused mixture.

    Args:
        folder: made where it is not there.
        tensors: by their names in the file.
        patients: keyed hashes of those whom the weights have seen.
        describe: the text of `model.json`, from the sha256 of the weights and of the list of patients.
    """
    folder.mkdir(parents=True, exist_ok=True)
    seen = PatientList.of(patients)
    files = {name: folder / f".{name}.{os.getpid()}.part" for name in (WEIGHTS, PATIENTS, INFO)}
    try:
        for file in files.values():
            make_anew(file)
        write_tensors(files[WEIGHTS], tensors, {"format": "pt"})
        files[PATIENTS].write_bytes(seen.text)
        files[INFO].write_text(describe(sha256_of(files[WEIGHTS]), seen.sha256) + "\n")
        for name, file in files.items():  # model.json last: until then the checksums refuse the mixture
            with file.open("rb") as stream:
                os.fsync(stream.fileno())
            file.replace(folder / name)
    finally:
        for file in files.values():
            file.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed writer of a model left beside it; nobody else may be writing one."""
    for name in (WEIGHTS, PATIENTS, INFO):
        for part in folder.glob(f".{name}.*.part"):
            part.unlink(missing_ok=True)


def load_release(path: Path) -> Release:
    """Read a release from its folder, its `model.safetensors` or its `model.json`.

    A fine-tuned model is read too; of several that predict together, the first.

    Raises:
        UserError: a file is missing, truncated, corrupt or of an unknown format version.
    """
    info, patients = read_about(path)
    weights = _folder_of(path) / WEIGHTS
    try:
        with opened_once(weights) as (stream, same):
            _check_intact(weights, sha256_of(stream), info.weights_sha256)
            tensors = load_file(same)
        parts: Parts = {"encoder": tensors} if info.format_version == 1 else from_file(first_member(tensors))
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{weights} cannot be read ({error}); copy or download it again") from error
    return Release(parts, info, patients)


def read_about(path: Path) -> tuple[ReleaseInfo, list[str]]:
    """What `load_release` reads beside the weights, which are not looked at: the description, and the patients.

    Raises:
        UserError: as there.
    """
    folder = _folder_of(path)
    for name in (INFO, WEIGHTS, PATIENTS):
        if not (folder / name).is_file():
            raise UserError(f"{folder} is not a released model: {name} is missing; give the folder that has it")
    content = read_description(folder / INFO)
    info = finetuned_info(folder / INFO, content) if is_finetuned(content) else read_info(folder / INFO)
    listed = folder / PATIENTS
    try:
        patients = listed.read_bytes()
        _check_intact(listed, hashlib.sha256(patients).hexdigest(), info.patients_sha256)
        return info, patients.decode("ascii").split()
    except (OSError, ValueError) as error:
        raise UserError(f"{listed} cannot be read ({error}); copy or download it again") from error


def _folder_of(path: Path) -> Path:
    path = Path(path)
    return path if path.is_dir() else path.parent


def _check_intact(path: Path, found: str, expected: str) -> None:
    if found != expected:
        raise UserError(
            f"{path} is damaged or not the file that {INFO} describes "
            "(its checksum differs); copy or download the release again"
        )


def first_member(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the first of several models that predict together; of a single one all of them."""
    if not any(key.startswith("0.") for key in tensors):
        return dict(tensors)
    return {key.removeprefix("0."): value for key, value in tensors.items() if key.startswith("0.")}


def load_encoder(path: Path) -> tuple[Encoder, ReleaseInfo]:
    """The encoder of a release, built from its own description, and that description."""
    release = load_release(path)
    try:
        check_fits({"encoder": release.encoder}, release.info.backbone)
    except ValueError as error:
        raise UserError(f"{path}: {error}; {INFO} and {WEIGHTS} are not of one model") from error
    with torch.device("meta"):  # neither draws nor allocates weights that are replaced at once
        encoder = build(release.info.backbone)
    encoder.load_state_dict(release.encoder, assign=True)
    return encoder.float(), release.info


def check_fits(parts: Parts, config: BackboneConfig) -> None:
    """Raise ValueError, naming the first difference, where weights are not exactly those of a backbone.

    A decoder must be the backbone's own. What a head is depends on its task: it is not looked at.
    """
    with torch.device("meta"):
        encoder = build(config)
        decoder = encoder.feature_decoder() if "decoder" in parts else None
    _check_same(encoder, parts.get("encoder", {}), config)
    if "decoder" in parts:
        if decoder is None:
            raise ValueError(f"{config.name} has no decoder of its own")
        _check_same(decoder, parts["decoder"], config)


def _check_same(network: nn.Module, weights: Mapping[str, Tensor], config: BackboneConfig) -> None:
    expected = {key: value.shape for key, value in network.state_dict().items()}
    given = {key: value.shape for key, value in weights.items()}
    for key in sorted(expected.keys() | given.keys()):
        if expected.get(key) != given.get(key):
            want, have = (tuple(shapes[key]) if key in shapes else "absent" for shapes in (expected, given))
            raise ValueError(f"the weights do not fit {config!r}: {key} is {have}, should be {want}")
