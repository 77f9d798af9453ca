"""The states of a rank's random number generators, in and out of a checkpoint."""

import torch
from torch import Tensor

from scanfoundry.pretrain.distributed.world import World


def state(world: World) -> dict[str, Tensor]:
    """This rank's generator states by device."""
    mine = {"torch": torch.get_rng_state()}
    if world.device.type == "cuda":
        mine["cuda"] = torch.cuda.get_rng_state()
    return mine


def restore(states: dict[str, Tensor]) -> None:
    """Set this rank's generators to what `state` saw."""
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
