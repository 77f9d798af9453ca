"""A fine-tuned model on disk: `model.safetensors`, `model.json` that describes it, and `patients.txt`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scanfoundry.backbones.models.description import SourceRecord, is_finetuned, read_description
from scanfoundry.backbones.models.parts import from_file, joined, split, to_file
from scanfoundry.backbones.models.release import INFO, PATIENTS, WEIGHTS
from scanfoundry.backbones.models.tensor_file import write_tensors
from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import opened_once, sha256_of, write_json, write_text, write_whole
from scanfoundry.finetune.config.tasks.registry import tasks
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.task import Adapter, TaskModel


@dataclass(frozen=True)
class Seen:
    """Whom the weights of a model have seen, and under which terms they came."""

    patients: Sequence[str] = ()  # keyed hashes
    sources: tuple[SourceRecord, ...] = ()
    licence: str = ""  # of the weights that it started from
    citation: str = ""


def adapter_for(spec: Spec) -> Adapter[Any, Any]:
    """The task's adapter."""
    adapter: Adapter[Any, Any] = tasks()[spec.task.name].adapter(spec)
    return adapter


def save_model(folder: Path, members: Sequence[TaskModel], spec: Spec, seen: Seen = Seen()) -> None:
    """Write the weights of all members by part, whom they have seen, then the description with the checksums.

    With several members the names of the weights begin with the member's number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    single = len(members) == 1
    weights = {
        (name if single else f"{number}.{name}"): value.detach().cpu().contiguous()
        for number, model in enumerate(members)
        for name, value in to_file(split(model, model.state_dict())).items()
    }
    patients = sorted(set(seen.patients))
    write_whole(folder / WEIGHTS, lambda part: write_tensors(part, weights, {"format": "pt"}))
    write_text(folder / PATIENTS, "".join(f"{patient}\n" for patient in patients))
    origin = {
        "sources": [source.model_dump(mode="json") for source in seen.sources],
        "patients": len(patients),
        "patients_sha256": sha256_of(folder / PATIENTS),
        "licence": seen.licence,
        "citation": seen.citation,
    }
    described = spec.model_copy(update={"members": len(members)}).model_dump(mode="json")
    write_json(folder / INFO, described | {"origin": origin, "weights_sha256": sha256_of(folder / WEIGHTS)})


def load_model(path: Path) -> tuple[Adapter[Any, Any], list[TaskModel]]:
    """The task and the networks that predict together (evaluation mode, CPU) of a run folder or its weights.

    UserError where a file is missing or damaged, or is a pre-trained encoder without a head.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / INFO).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{path} is no fine-tuned model: {INFO} or {WEIGHTS} is missing; give a finished run folder")
    try:
        described = read_description(folder / INFO)
        if not is_finetuned(described):
            raise UserError(f"{path} is no fine-tuned model (a pre-trained encoder?); run 'scanfoundry finetune' first")
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


def _members(adapter: Adapter[Any, Any], weights: dict[str, Tensor]) -> list[TaskModel]:
    spec, found = adapter.spec, []
    for number in range(spec.members):
        prefix = "" if spec.members == 1 else f"{number}."
        mine = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        model = adapter.build(build(spec.backbone))
        if spec.format_version > 1:  # files of version 1 hold the names of the network itself
            mine = joined(model, model.state_dict(), from_file(mine))
        model.load_state_dict(mine)
        found.append(model.eval())
    return found


def pick_device(name: str) -> torch.device:
    """'auto' takes the GPU where there is one; UserError for 'cuda' without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU: set device=cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
