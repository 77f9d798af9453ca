"""The states of the ranks' random number generators, in and out of a checkpoint."""

from typing import Any

import torch

from scanforge.pretrain.distributed import World


def gather(world: World) -> list[dict[str, Any]]:
    """The generator states of all ranks, in their order; every rank calls it."""
    mine = {"torch": torch.get_rng_state()}
    if world.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state()
    if world.size == 1:
        return [mine]
    everyone: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(everyone, mine)
    return everyone


def restore(states: list[dict[str, Any]], world: World) -> None:
    """Set this rank's generators to what `gather` saw."""
    state = states[world.rank % len(states)]  # at another world size no rank has a state of its own to go back to
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
