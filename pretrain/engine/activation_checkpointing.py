"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks keep their input and compute the rest again.

It is applied to a whole objective in one place, for every backbone and objective, and changes no parameter's name.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scanfoundry.backbones.protocol import Encoder, HasBlocks
from scanfoundry.configs.errors import UserError


def apply(objective: nn.Module) -> None:
    """Make every block of the objective's encoders and decoders compute its forward pass again in the backward pass.

    Loss and gradients stay the same bits: random states are kept, and the same operations run. Blocks without a
    gradient to come, such as a momentum encoder's, run as before. UserError for an encoder without any such block.
    """
    for module in objective.modules():
        if isinstance(module, Encoder) and not any(True for _ in module.block_modules()):
            raise UserError(
                f"engine.activation_checkpointing=true would do nothing for {type(module).__name__}, which names no "
                "block to compute twice (Encoder.block_modules); set it to false"
            )
    for block in blocks(objective):
        if "forward" not in vars(block):
            vars(block)["forward"] = partial(_recomputed, block.forward)


def blocks(objective: nn.Module) -> Iterator[nn.Module]:
    """The blocks of an objective's encoders and decoders, as each of them names its own."""
    for module in objective.modules():
        if isinstance(module, HasBlocks):
            yield from module.block_modules()


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)
