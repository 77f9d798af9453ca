"""A model that predicts, on disk: `model.safetensors`, `model.json` that describes it, and `patients.txt`.

Fine-tuning writes such models; released ones whose head says its classes predict too (`released_model.py`).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scanfoundry.backbones import find, is_release, read_release
from scanfoundry.backbones.layers.u_decoder import UDecoder
from scanfoundry.backbones.models.description import SourceRecord, is_finetuned, read_description
from scanfoundry.backbones.models.parts import from_file, joined, split, to_file
from scanfoundry.backbones.models.release import INFO, WEIGHTS, write_model
from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import opened_once, sha256_of
from scanfoundry.finetune.config.tasks.registry import tasks
from scanfoundry.finetune.heads.segmentation import SegmentationModel
from scanfoundry.finetune.released_model import spec_of_release
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.task import Adapter, TaskModel


@dataclass(frozen=True)
class Seen:
    """Whom the weights of a model have seen, and under which terms they came."""

    patients: Sequence[str] = ()  # keyed hashes
    sources: tuple[SourceRecord, ...] = ()
    licence: str = ""  # of the weights that it started from
    citation: str = ""
    withheld: int = 0  # patients of the model that it started from, which its copy does not list


def adapter_for(spec: Spec) -> Adapter[Any, Any]:
    """The task's adapter."""
    adapter: Adapter[Any, Any] = tasks()[spec.task.name].adapter(spec)
    return adapter


def save_model(folder: Path, members: Sequence[TaskModel], spec: Spec, seen: Seen = Seen()) -> None:
    """Write the weights of all members by part, whom they have seen, then the description with the checksums.

    With several members the names of the weights begin with the member's number.
    """
    single = len(members) == 1
    weights = {
        (name if single else f"{number}.{name}"): value.detach().cpu().contiguous()
        for number, model in enumerate(members)
        for name, value in to_file(split(model, model.state_dict())).items()
    }
    patients = sorted(set(seen.patients))
    content = spec.model_copy(update={"members": len(members)}).model_dump(mode="json")

    def described(weights_sha256: str, patients_sha256: str) -> str:
        origin = {
            "sources": [source.model_dump(mode="json") for source in seen.sources],
            "patients": len(patients),
            "patients_withheld": seen.withheld,
            "patients_sha256": patients_sha256,
            "licence": seen.licence,
            "citation": seen.citation,
        }
        return json.dumps(content | {"origin": origin, "weights_sha256": weights_sha256}, indent=2, allow_nan=False)

    write_model(folder, weights, patients, described)


def load_model(name_or_path: str | Path) -> tuple[Adapter[Any, Any], list[TaskModel]]:
    """The task and the networks that predict together (evaluation mode, CPU).

    Args:
        name_or_path: a run folder or its weights; or a released model that segments: its name, folder or file.

    Raises:
        UserError: a file is missing or damaged, or the model has no head that predicts by itself.
    """
    path = find(name_or_path)
    folder = path if path.is_dir() else path.parent
    if not is_release(path):
        return _released(str(name_or_path), path)
    if not (folder / INFO).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{path} is no fine-tuned model: {INFO} or {WEIGHTS} is missing; give a finished run folder")
    described = read_description(folder / INFO)
    if not is_finetuned(described):
        return _released(str(name_or_path), path)
    try:
        checksum = described.pop("weights_sha256", None)
        described.pop("origin", None)
        spec = Spec.model_validate(described)
        adapter = adapter_for(spec)
        with opened_once(folder / WEIGHTS) as (stream, same):
            if checksum != sha256_of(stream):
                raise UserError(f"{folder / WEIGHTS} is damaged: its checksum differs from {INFO}'s; copy it again")
            members = _members(adapter, load_file(same))
    except (OSError, ValueError, ValidationError, SafetensorError, RuntimeError) as error:
        raise UserError(f"cannot load {folder}: {' '.join(str(error).split())[:300]}") from error
    return adapter, members


def model_digest(path: Path) -> str:
    """The sha256 that tells a model from others: of its description, or of the file where that is all."""
    found = find(path)
    return sha256_of((found if found.is_dir() else found.parent) / INFO if is_release(found) else found)


def _released(name: str, path: Path) -> tuple[Adapter[Any, Any], list[TaskModel]]:
    """A released model, ours or of others."""
    release = read_release(path)
    adapter = adapter_for(spec_of_release(name, release))
    model = adapter.build(build(release.info.backbone))
    try:
        model.load_state_dict(joined(model, model.state_dict(), release.parts))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{name} does not fit its own description ({reason}); copy or install it again") from error
    return adapter, [model.eval()]


def _members(adapter: Adapter[Any, Any], weights: dict[str, Tensor]) -> list[TaskModel]:
    spec, found = adapter.spec, []
    for number in range(spec.members):
        prefix = "" if spec.members == 1 else f"{number}."
        mine = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        model = _built(adapter, mine)
        if spec.format_version > 1:  # files of version 1 hold the names of the network itself
            mine = joined(model, model.state_dict(), from_file(mine))
        model.load_state_dict(mine)
        found.append(model.eval())
    return found


def _built(adapter: Adapter[Any, Any], weights: Mapping[str, Tensor]) -> TaskModel:
    """The network of a specification; ResEnc's with the decoder that it had before it got nnU-Net's own, if so."""
    spec = adapter.spec
    encoder = build(spec.backbone)
    model = adapter.build(encoder)
    earlier = spec.backbone.name == "resenc" and any(".ups." in name for name in weights)
    if earlier and isinstance(model, SegmentationModel):
        model.net = UDecoder(encoder, encoder.feature_channels, len(spec.classes) + 1, deep_supervision=True)
    return model


def pick_device(name: str) -> torch.device:
    """'auto' takes the GPU where there is one; UserError for 'cuda' without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU: set device=cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
