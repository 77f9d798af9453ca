"""A fine-tuned model on disk: `model.safetensors` and the `model.json` that describes it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from scanfoundry.backbones.models.tensor_file import write_tensors
from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import opened_once, sha256_of, write_json, write_whole
from scanfoundry.finetune.config.tasks.registry import tasks
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.task import Adapter, TaskModel

WEIGHTS, INFO = "model.safetensors", "model.json"


def adapter_for(spec: Spec) -> Adapter[Any, Any]:
    """The task's adapter."""
    adapter: Adapter[Any, Any] = tasks()[spec.task.name].adapter(spec)
    return adapter


def save_model(folder: Path, members: Sequence[TaskModel], spec: Spec) -> None:
    """Write the weights of all members, then the description with their checksum.

    With several members the names of the weights begin with the member's number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    single = len(members) == 1
    weights = {
        (name if single else f"{number}.{name}"): value.detach().cpu().contiguous()
        for number, model in enumerate(members)
        for name, value in model.state_dict().items()
    }
    write_whole(folder / WEIGHTS, lambda part: write_tensors(part, weights, {"format": "pt"}))
    described = spec.model_copy(update={"members": len(members)}).model_dump(mode="json")
    write_json(folder / INFO, described | {"weights_sha256": sha256_of(folder / WEIGHTS)})


def load_model(path: Path) -> tuple[Adapter[Any, Any], list[TaskModel]]:
    """The task and the networks that predict together (evaluation mode, CPU) of a run folder or its weights.

    UserError where a file is missing or damaged, or is a pre-trained encoder without a head.
    """
    folder = path if path.is_dir() else path.parent
    if not (folder / INFO).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(f"{path} is no fine-tuned model: {INFO} or {WEIGHTS} is missing; give a finished run folder")
    try:
        described = json.loads((folder / INFO).read_text(encoding="utf-8"))
        if not isinstance(described, dict) or described.get("kind") != "finetuned":
            raise UserError(f"{path} is no fine-tuned model (a pre-trained encoder?); run 'scanfoundry finetune' first")
        checksum = described.pop("weights_sha256", None)
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
        model = adapter.build(build(spec.backbone))
        model.load_state_dict({name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)})
        found.append(model.eval())
    return found


def pick_device(name: str) -> torch.device:
    """'auto' takes the GPU where there is one; UserError for 'cuda' without."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU: set device=cpu")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")
