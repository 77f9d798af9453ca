"""What makes a GPU fast and leaves a CPU's numbers alone: kernels, the compiler, the settings of ZeRO's reductions."""

from typing import Any

import torch
from torch import nn

from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.engine import activation_checkpointing
from scanfoundry.pretrain.objectives.spark import SparseMasked


def set_kernels(device: torch.device, tf32: bool, autotune: bool) -> None:
    """Set which kernels this process takes on a GPU; nothing on a CPU.

    Args:
        device: of the run.
        tf32: products of float32 with 10 bits of mantissa, on tensor cores.
        autotune: convolutions try all kernels at the first batch of a shape and keep the fastest.
    """
    if device.type == "cpu":
        return
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = autotune


def compile_blocks(objective: nn.Module, **options: Any) -> int:
    """Compile every block of the objective's encoders and decoders (torch.compile); weights keep their names.

    Blocks are compiled and not the whole: what an objective decides on the host lies between them.

    Args:
        objective: on its device.
        options: of torch.compile.

    Returns:
        How many blocks there are.

    Raises:
        UserError: the objective walks its blocks on packed maps, whose shapes differ from batch to batch.
    """
    if any(isinstance(module, SparseMasked) for module in objective.modules()):
        raise UserError(
            "engine.compile=true is not for objective 'spark': its maps hold the visible blocks alone, and their "
            "convolutions are scanfoundry's own; set it to false"
        )
    found = list(dict.fromkeys(activation_checkpointing.blocks(objective)))
    if not found:
        raise UserError("engine.compile=true would do nothing: the backbone names no blocks; set it to false")
    for block in found:
        block.compile(**options)
    return len(found)


def reduction(stage: int, device: torch.device) -> dict[str, Any]:
    """The keys of DeepSpeed's `zero_optimization` by which gradients are reduced beside the backward pass on a GPU."""
    return {"overlap_comm": True} if device.type != "cpu" and stage in (1, 2) else {}
