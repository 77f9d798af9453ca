"""The states of a training in and out of a snapshot: what goes on from it computes the same bits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from isal import isal_zlib
from torch import Tensor, nn

from scanfoundry.finetune.training.saving import Snapshot

Part = tuple[dict[str, Tensor], dict[str, Any]]  # tensors, and what JSON can hold


def generators(device: torch.device) -> dict[str, Tensor]:
    """The states of torch's generators; batches need none, they are drawn by position."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generators(states: dict[str, Tensor], device: torch.device) -> None:
    """Set them to what `generators` saw."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)


def optimiser_state(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """'<number of the parameter>.<state>': tensors. The numbers of its groups are the configuration's."""
    states = optimiser.state_dict()["state"]
    return {f"{number}.{name}": value for number, state in states.items() for name, value in state.items()
            if isinstance(value, Tensor)}  # fmt: skip


def set_optimiser(optimiser: torch.optim.Optimizer, states: dict[str, Tensor]) -> None:
    """Put the states of every parameter back."""
    found: dict[int, dict[str, Tensor]] = {}
    for key, value in states.items():
        number, name = key.split(".", 1)
        found.setdefault(int(number), {})[name] = value
    groups = optimiser.param_groups
    optimiser.load_state_dict({"state": found, "param_groups": optimiser.state_dict()["param_groups"]})
    optimiser.param_groups = groups  # those that the rates know; torch has put copies in their place


def gathered(device: torch.device, model: nn.Module, optimiser: torch.optim.Optimizer, **parts: Part) -> Snapshot:
    """One snapshot of model, optimiser, generators and the named parts."""
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"optimiser/{name}": value for name, value in optimiser_state(optimiser).items()}
    tensors |= {f"generator/{name}": value for name, value in generators(device).items()}
    for part, (held, _) in parts.items():
        tensors |= {f"{part}/{name}": value for name, value in held.items()}
    return Snapshot(tensors, {part: facts for part, (_, facts) in parts.items()})


def spread(
    snapshot: Snapshot, device: torch.device, model: nn.Module, optimiser: torch.optim.Optimizer
) -> dict[str, Part]:
    """Put model, optimiser and generators back; gives the other parts by name."""
    model.load_state_dict(section(snapshot, "model"))
    set_optimiser(optimiser, section(snapshot, "optimiser"))
    set_generators(section(snapshot, "generator"), device)
    return {part: (section(snapshot, part), facts) for part, facts in snapshot.facts.items() if isinstance(facts, dict)}


def section(snapshot: Snapshot, part: str) -> dict[str, Tensor]:
    """The tensors of one part, by their names in it."""
    return {name.removeprefix(f"{part}/"): value for name, value in snapshot.tensors.items()
            if name.startswith(f"{part}/")}  # fmt: skip


def as_tensor(array: npt.NDArray) -> Tensor:
    """What a snapshot holds of an array; small integers, such as label maps, compressed."""
    if array.dtype != np.uint8:
        return torch.from_numpy(np.array(array, order="C"))
    packed = isal_zlib.compress(np.ascontiguousarray(array).tobytes(), 1)
    return torch.frombuffer(bytearray(packed), dtype=torch.uint8)


def as_array(tensor: Tensor, shape: Sequence[int]) -> npt.NDArray:
    """The array again, of its shape."""
    if tensor.dtype != torch.uint8:
        return tensor.numpy()
    return np.frombuffer(bytearray(isal_zlib.decompress(tensor.numpy().tobytes())), np.uint8).reshape(shape)
