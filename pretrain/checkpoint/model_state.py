"""A model and its optimiser into the files of a checkpoint and back, bit for bit, at any ZeRO stage and world size."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.pretrain.checkpoint.parameter_shards import Piece, shared_out
from scanfoundry.pretrain.checkpoint.state_files import STATE, StateFiles, rank_file, write_pieces, write_state
from scanfoundry.pretrain.distributed import rng
from scanfoundry.pretrain.distributed.world import World

STEP = "step"  # of an optimiser's state: how often it stepped, the same for all parameters


def save(
    folder: Path, model: nn.Module, held: list[Piece], states: dict[Tensor, dict[str, Any]], extra: dict[str, Any],
    world: World,
) -> list[Written]:  # fmt: skip
    """Write this rank's pieces into `folder`; every rank calls it. Gives the files that this rank wrote.

    held: `pieces` of the model. states: of the optimiser, by what it steps. extra: JSON that `load` gives back.
    Raises OSError where the disk is full or read-only.
    """
    tensors: dict[str, Tensor] = {}
    starts: dict[str, int] = {}
    for piece in shared_out(held, world):
        kinds = {"weight": piece.flat} | {k: v for k, v in states.get(piece.flat, {}).items() if _follows(k, v)}
        for kind, flat in kinds.items():
            key = f"{kind}/{piece.name}"
            tensors[key], starts[key] = piece.of(flat), piece.start
    tensors |= {f"rng/{device}": state for device, state in rng.state(world).items()}
    if world.is_main:
        tensors |= {f"buffer/{name}": value for name, value in _buffers(model).items()}
    folder.mkdir(parents=True, exist_ok=True)
    written = [write_pieces(folder / rank_file(world.rank), tensors, starts)]
    if world.is_main:
        written.append(write_state(folder / STATE, _describe(model, states, world) | {"extra": extra}))
    return written


def load(
    folder: Path, model: nn.Module, held: list[Piece], states: dict[Tensor, dict[str, Any]], world: World
) -> dict[str, Any]:
    """Read back what `save` wrote, by however many ranks; every rank calls it. Gives the `extra`.

    Raises RuntimeError where the files do not hold what the model has.
    """
    with StateFiles(folder) as files:
        _check_fit(files, model)
        for name, parameter in model.named_parameters():
            whole = _whole(parameter)
            if whole is not None:
                files.read("weight", name, 0, whole.numel(), whole)
        for piece in held:
            if piece.flat is not piece.parameter:  # else it has just been read whole
                files.piece("weight", piece, piece.of(piece.flat))
                _restore_shard(piece)
        _restore_states(files, held, states)
        for name, value in files.buffers().items():
            model.get_buffer(name).copy_(value)
        rng.restore(files.rng(world.rank))
        return dict(files.state["extra"])


def _restore_states(files: StateFiles, held: list[Piece], states: dict[Tensor, dict[str, Any]]) -> None:
    trained = [piece for piece in held if piece.parameter.requires_grad]
    for flat in {id(piece.flat): piece.flat for piece in trained}.values():
        own = {kind: torch.zeros_like(flat) for kind in files.kinds()}
        step = files.state["optimiser"].get(STEP)
        states[flat] = own if step is None else {STEP: torch.tensor(step, dtype=torch.float32), **own}
    for piece in trained:
        for kind in files.kinds():
            files.piece(kind, piece, piece.of(states[piece.flat][kind]))


def _restore_shard(piece: Piece) -> None:
    """Where ZeRO 3's optimiser steps a copy of the shard (offload), the shard follows."""
    shard: Any = getattr(piece.parameter, "ds_tensor", None)
    if shard is not None and shard is not piece.flat:
        shard.data.view(-1)[: piece.numel].copy_(piece.of(piece.flat))


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
