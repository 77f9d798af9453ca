"""A model and its optimiser into the files of a checkpoint and back, bit for bit, at any ZeRO stage and world size."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.pretrain.checkpoint.host_memory import HostMemory
from scanfoundry.pretrain.checkpoint.parameter_shards import ParameterShard, shared_out
from scanfoundry.pretrain.checkpoint.shared_reading import Wanted, read_together
from scanfoundry.pretrain.checkpoint.state_files import STATE, StateFiles, rank_file, write_shards, write_state
from scanfoundry.pretrain.distributed import rng
from scanfoundry.pretrain.distributed.world import World

STEP = "step"  # of an optimiser's state: how often it stepped, the same for all parameters


@dataclass(frozen=True)
class Snapshot:
    """What a rank writes of a checkpoint: tensors by key, the starts of the shards, and on rank 0 the description."""

    rank: int
    tensors: dict[str, Tensor]
    starts: dict[str, int]
    state: dict[str, Any] | None

    def write(self, folder: Path) -> list[Written]:
        """Write this rank's files into the folder of the checkpoint, which is made where it is not there.

        Returns:
            What was written.

        Raises:
            OSError: the disk is full or read-only.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written = [write_shards(folder / rank_file(self.rank), self.tensors, self.starts)]
        if self.state is not None:
            written.append(write_state(folder / STATE, self.state))
        return written


def snapshot(
    model: nn.Module,
    held: list[ParameterShard],
    states: dict[Tensor, dict[str, Any]],
    extra: dict[str, Any],
    world: World,
    memory: HostMemory | None = None,
) -> Snapshot:
    """This rank's part of a checkpoint; every rank calls it.

    Args:
        model: the objective.
        held: its `parameter_shards`.
        states: of the optimiser, by the tensor that it steps.
        extra: JSON that `load` returns.
        world: the ranks.
        memory: tensors are copied there, so that the next step may change them. None: the snapshot refers to the
            model's own, and is written before the next step.
    """
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    for shard in shared_out(held, world):
        kinds = {"weight": shard.flat} | {k: v for k, v in states.get(shard.flat, {}).items() if _follows(k, v)}
        for kind, flat in kinds.items():
            key = f"{kind}/{shard.name}"
            tensors[key], starts[key] = shard.of(flat), shard.start
    if world.is_main:
        tensors |= {f"buffer/{name}": value for name, value in _buffers(model).items()}
    states_of_rng = {f"rng/{device}": state for device, state in rng.state(world).items()}
    kept = tensors if memory is None else memory.copy(tensors)
    description = _describe(model, states, world) | {"extra": extra} if world.is_main else None
    return Snapshot(world.rank, kept | states_of_rng, starts, description)


def load(
    folder: Path, model: nn.Module, held: list[ParameterShard], states: dict[Tensor, dict[str, Any]], world: World
) -> dict[str, Any]:
    """Read what snapshots wrote, of however many ranks, into the model and `states`; every rank calls it.

    Returns:
        The `extra` of `snapshot`.

    Raises:
        RuntimeError: the files do not hold what the model has.
    """
    with StateFiles(folder, world.rank, world.size) as files:
        _check_fit(files, model)
        wholes = {name: _whole(parameter) for name, parameter in model.named_parameters()}
        common = [Wanted("weight", name, whole) for name, whole in wholes.items() if whole is not None]
        own = [("weight", shard, shard.flat) for shard in held if shard.flat is not shard.parameter]
        for kind, shard, flat in _made_states(files, held, states):
            if shard.flat is shard.parameter:
                common.append(Wanted(kind, shard.name, shard.of(flat)))
            else:
                own.append((kind, shard, flat))
        read_together(files, common, world)
        for kind, shard, flat in own:
            files.read_shard(kind, shard, shard.of(flat))
            if kind == "weight":
                _restore_shard(shard)
        for name, value in files.buffers().items():
            model.get_buffer(name).copy_(value)
        rng.restore(files.rng(world.rank))
        return dict(files.state["extra"])


def _made_states(
    files: StateFiles, held: list[ParameterShard], states: dict[Tensor, dict[str, Any]]
) -> Iterator[tuple[str, ParameterShard, Tensor]]:
    """Give the optimiser its states, still zero; yields (kind, shard, flat state) of each that is to be read."""
    trained = [shard for shard in held if shard.parameter.requires_grad]
    for flat in {id(shard.flat): shard.flat for shard in trained}.values():
        own = {kind: torch.zeros_like(flat) for kind in files.kinds()}
        step = files.state["optimiser"].get(STEP)
        states[flat] = own if step is None else {STEP: torch.tensor(step, dtype=torch.float32), **own}
    for shard in trained:
        for kind in files.kinds():
            yield kind, shard, states[shard.flat][kind]


def _restore_shard(shard: ParameterShard) -> None:
    """Where ZeRO 3's optimiser steps a copy of the shard (offload), the shard follows."""
    partition: Any = getattr(shard.parameter, "ds_tensor", None)
    if partition is not None and partition is not shard.flat:
        partition.data.view(-1)[: shard.numel].copy_(shard.of(shard.flat))


def _whole(parameter: nn.Parameter) -> Tensor | None:
    """A parameter that this rank holds whole, flat; at stage 3 those are the small ones."""
    held: Any = parameter
    if hasattr(held, "ds_tensor") and held.ds_status.name != "AVAILABLE":
        return None
    return parameter.detach().view(-1)


def _describe(model: nn.Module, states: dict[Tensor, dict[str, Any]], world: World) -> dict[str, Any]:
    steps = {float(state[STEP]) for state in states.values() if STEP in state}
    if len(steps) > 1:
        raise RuntimeError(f"parameters were stepped differently often: {sorted(steps)}")
    return {
        "world_size": world.size,
        "parameters": _shapes(model),
        "optimiser": {STEP: steps.pop()} if steps else {},
        "kinds": sorted({kind for state in states.values() for kind, v in state.items() if _follows(kind, v)}),
    }


def _check_fit(files: StateFiles, model: nn.Module) -> None:
    saved, mine = files.state["parameters"], _shapes(model)
    for name in saved.keys() | mine.keys():
        if saved.get(name) != mine.get(name):
            raise RuntimeError(f"{files.folder}: {name} is {saved.get(name)}, the model's is {mine.get(name)}")


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    """Of the whole parameters, which ZeRO 3 has elsewhere."""
    return {name: list(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}


def _buffers(model: nn.Module) -> dict[str, Tensor]:
    """Those that belong to the model's state."""
    saved = model.state_dict().keys()
    return {name: value for name, value in model.named_buffers() if name in saved}


def _follows(kind: str, value: Any) -> bool:
    return isinstance(value, Tensor) and kind != STEP
