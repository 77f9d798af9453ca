"""Objectives for comparisons with plain restatements."""

import torch

from scanfoundry.backbones.protocol import EncoderConfig
from scanfoundry.backbones.registry import build
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions


def randomised(config: ObjectiveOptions, backbone: EncoderConfig) -> Objective:
    """In float64, every weight random: one that is mixed up or forgotten is seen."""
    torch.manual_seed(0)
    objective = config.build(build(backbone)).double()
    for parameter in objective.parameters():
        torch.nn.init.normal_(parameter, mean=0.05, std=0.3)
    return objective
