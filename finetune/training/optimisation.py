"""Optimiser, base rates of its groups, and precision of one training."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from pydantic import BaseModel
from torch import nn

from scanfoundry.backbones.protocol import Encoder, Family
from scanfoundry.finetune.config.recipes import GENTLE, Arm
from scanfoundry.finetune.config.study import ScheduleConfig
from scanfoundry.finetune.task import TaskModel
from scanfoundry.finetune.training.layers import layers_of


class Preset(BaseModel):
    """An optimiser with every number settled."""

    optimiser: str
    lr: float
    weight_decay: float


def preset(schedule: ScheduleConfig, family: Family) -> Preset:
    """The optimiser and its numbers: what `schedule` gives, and defaults by the backbone's family for the rest.

    Convolutional: AdamW 1e-3. nnU-Net's SGD (1e-2, momentum 0.99) needs its 250,000 steps: in a few hundred AdamW ends
    far higher (measured, see configs/finetune/hippocampus_segmentation.yaml). Transformers: AdamW 3e-4 with decay
    0.05, as Primus from scratch; neither trains with SGD.
    """
    if schedule.optimiser == "sgd":
        chosen = Preset(optimiser="sgd", lr=1e-2, weight_decay=3e-5)
    elif family == "transformer":
        chosen = Preset(optimiser="adamw", lr=3e-4, weight_decay=0.05)
    else:
        chosen = Preset(optimiser="adamw", lr=1e-3, weight_decay=0.01)
    given = {name: value for name in ("lr", "weight_decay") if (value := getattr(schedule, name)) is not None}
    return chosen.model_copy(update=given)


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether training runs under bfloat16 autocast. 'auto': on a GPU, and on a CPU with bfloat16 arithmetic, where
    a STU-Net-S step takes 0.56 of the time; predictions on a CPU are float32 always."""
    if precision != "auto":
        return precision == "bfloat16"
    return device.type == "cuda" or torch.cpu._is_avx512_bf16_supported()


@dataclass(frozen=True)
class Scales:
    """What the rates of an arm are multiplied by; the scratch arm takes 1 for everything."""

    all: float = 1.0  # of every rate: a peak below that of training from scratch
    encoder: float = 1.0
    layer_decay: float = 1.0  # of one layer of the encoder to the layer behind it
    decoder: float = 1.0  # recipe 'sawtooth': while only what was not pre-trained learns


def scales_of(schedule: ScheduleConfig, arm: Arm, family: Family) -> Scales:
    """The scales of an arm: what `schedule` gives, and defaults by recipe and family for the rest.

    OpenMind fine-tunes whole networks at a tenth of the rate from scratch (SGD, ResEnc-L), and Primus at a third
    (AdamW). Its sawtooth begins with a hundredth for the decoder of Primus, whose training collapses otherwise.
    """
    if not arm.pretrained:
        return Scales()
    transformer = family == "transformer"
    lower = arm.recipe in GENTLE
    peak, first = schedule.pretrained_lr_scale, schedule.decoder_lr_scale
    return Scales(
        all=((1 / 3 if transformer else 0.1) if lower else 1.0) if peak is None else peak,
        encoder=schedule.encoder_lr_scale,
        layer_decay=schedule.layer_decay,
        decoder=(0.01 if transformer else 1.0) if first is None else first,
    )


def peak_lr(schedule: ScheduleConfig, arm: Arm, family: Family) -> float:
    """The highest rate of an arm's head; its encoder may have a lower one."""
    return preset(schedule, family).lr * scales_of(schedule, arm, family).all


def make_optimiser(
    model: TaskModel,
    chosen: Preset,
    scales: Scales,
    loaded: Collection[str] | None = None,
    of: Encoder | None = None,
    beside: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """An optimiser whose groups have their `base_lr`, and whether they are of the `encoder` and `loaded`.

    Args:
        model: the network.
        chosen: the optimiser and its numbers.
        scales: of the rates.
        loaded: names of the parameters that came from a checkpoint; None: those of the encoder.
        of: the encoder, whose layers a decay of rates counts.
        beside: parameters that are trained beside the model, as those of its head are.
    """
    encoder = {id(parameter) for parameter in model.encoder_parameters()}
    layers, last = ({}, 0) if of is None or scales.layer_decay == 1 else layers_of(of)
    peak = chosen.lr * scales.all
    groups: dict[tuple[bool, bool, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        inside = id(parameter) in encoder
        if inside and not parameter.requires_grad:
            continue  # under low-rank updates
        known = inside if loaded is None else name in loaded
        groups.setdefault((inside, known, layers.get(id(parameter), last)), []).append(parameter)
    settings = [
        {
            "params": groups[inside, known, layer],
            "base_lr": peak * (scales.encoder * scales.layer_decay ** (last - layer) if inside else 1.0),
            "encoder": inside,
            "loaded": known,
        }
        for inside, known, layer in sorted(groups, reverse=True)
    ]
    if beside:
        settings.append({"params": list(beside), "base_lr": peak, "encoder": False, "loaded": False})
    if chosen.optimiser == "sgd":
        return torch.optim.SGD(settings, chosen.lr, 0.99, weight_decay=chosen.weight_decay, nesterov=True, fused=True)
    # Fused: on a CPU the plain loop took a fifth of a step, passing over all weights for each of its operations.
    return torch.optim.AdamW(settings, chosen.lr, weight_decay=chosen.weight_decay, fused=True)
