"""Low-rank updates of an encoder by peft (Hu et al. 2021), merged into its weights when it is trained.

peft changes the encoder's layers in place, so whatever shares them (a decoder with its skips) sees the same ones.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.recipes import LoraConfig


@dataclass
class Lora:
    """The updates of one encoder."""

    tuner: Any  # peft's LoraModel

    @torch.no_grad()
    def merge(self) -> None:
        """Add the updates to the weights; the encoder has its own layers again.

        peft (0.21) cannot merge a 3D convolution of one voxel: it takes it for one in 2D.
        """
        for module in self.tuner.modules():
            if hasattr(module, "lora_A") and "default" in module.lora_A:
                down, up = module.lora_A["default"].weight, module.lora_B["default"].weight
                update = torch.einsum("or,ri...->oi...", up.flatten(1), down)
                module.get_base_layer().weight += module.scaling["default"] * update
        self.tuner.unload()


def inject(encoder: Encoder, config: LoraConfig) -> Lora:
    """Freeze `encoder` and put a low-rank update beside every layer that has room for one.

    At the start the updates are zero: the encoder computes what it did. UserError where no layer has room.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig as PeftConfig
        from peft.tuners.lora import LoraModel

    names = targets(encoder, config.rank)
    if not names:
        raise UserError(f"no layer of the encoder is wider than lora.rank={config.rank}; lower it")
    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type] # it is only divided by the rank
        lora_dropout=config.dropout,
        target_modules=[f"encoder.{name}" for name in names],
        bias="none",
    )
    # In a module of its own: peft takes a `config` attribute, which an encoder has, for one of transformers.
    tuner = LoraModel(nn.ModuleDict({"encoder": encoder}), {"default": settings}, "default")
    for name, module in encoder.named_modules():
        # peft's own convolutions are plain ones, whose bf16 gradients are garbage at depth 2 on a CPU.
        if name.endswith("lora_A.default") and isinstance(module, nn.Conv3d):
            module.__class__ = DepthFreeConv3d
    return Lora(tuner)


def targets(encoder: Encoder, rank: int) -> list[str]:
    """Names of the layers that get an update: linear ones, and convolutions over all channels at once (a depthwise
    kernel has no rank to lower), both sides wider than `rank`."""
    found = []
    for name, module in encoder.named_modules():
        if isinstance(module, nn.Linear):
            wide = min(module.in_features, module.out_features) > rank
        elif isinstance(module, nn.Conv2d | nn.Conv3d):
            wide = module.groups == 1 and min(module.in_channels, module.out_channels) > rank
        else:
            continue
        if wide:
            found.append(name)
    return found
