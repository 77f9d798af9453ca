"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): blocks keep their input and compute the rest again.

It is applied to a whole objective in one place, for every backbone and objective, and changes no parameter's name.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from scanfoundry.backbones.mednext import MedNeXtBlock
from scanfoundry.backbones.primus import PrimusEncoder
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.resenc import BasicBlockD
from scanfoundry.backbones.stunet import BasicResBlock
from scanfoundry.backbones.vit import ViTEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.objectives.light_decoder import UpBlock
from scanfoundry.pretrain.objectives.token_decoder import TokenDecoder


def apply(objective: nn.Module) -> None:
    """Make every block of the objective's encoders and decoders compute its forward pass again in the backward pass.

    Loss and gradients stay the same bits: random states are kept, and the same operations run. Blocks without a
    gradient to come, such as a momentum encoder's, run as before. UserError for an encoder without any such block.
    """
    for module in objective.modules():
        if isinstance(module, Encoder) and not any(True for _ in blocks(module)):
            raise UserError(
                f"engine.activation_checkpointing=true would do nothing for {type(module).__name__}, which names no "
                "block to compute twice (Encoder.recomputable); set it to false"
            )
    for block in blocks(objective):
        if "forward" not in vars(block):
            vars(block)["forward"] = partial(_recomputed, block.forward)


def blocks(objective: nn.Module) -> Iterator[nn.Module]:
    """The residual, MedNeXt, transformer and decoder blocks of an objective."""
    for module in objective.modules():
        if isinstance(module, BasicResBlock | BasicBlockD | MedNeXtBlock | UpBlock):
            yield module
        elif isinstance(module, ViTEncoder | PrimusEncoder | TokenDecoder):
            yield from module.blocks
        if isinstance(module, Encoder):
            yield from module.recomputable()


def _recomputed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    return checkpoint(forward, *inputs, use_reentrant=False, **options)
