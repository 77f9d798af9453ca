"""The model averaged over the steps of a run, beside any objective, which does not know of it."""

from collections.abc import Mapping
from typing import Annotated, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.base import Config
from scanfoundry.pretrain.ema import Follower, skipped
from scanfoundry.pretrain.objectives.protocol import Objective

NAME = "averaged"  # of the submodule, and so of its weights in checkpoints: averaged.encoder.*, averaged.decoder.*


class EmaConfig(Config):
    """Exponential moving average of the model's weights (Polyak and Juditsky 1992); it is what is released then."""

    momentum: Annotated[float, Field(gt=0, lt=1)] = 0.9999

    def at(self, updates: int) -> float:
        """The momentum of the next step after `updates` ones: min(momentum, (1 + t) / (10 + t)), so that the random
        weights of the start are soon forgotten (as in TensorFlow's ExponentialMovingAverage with `num_updates`)."""
        return min(self.momentum, (1 + updates) / (10 + updates))


class AveragedEncoder(Follower):
    """A frozen copy of the model, `encoder` and where it is trained `decoder`, and how many steps it has followed."""

    updates: Tensor  # () int64; a buffer, so that a resumed run goes on where the warm-up was

    def __init__(self, config: EmaConfig, model: Mapping[str, nn.Module]) -> None:
        super().__init__(**model)
        self.config = config
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def move(self, model: Mapping[str, nn.Module]) -> None:
        """One step towards the model's weights and buffers; on every rank, after a step that was applied.

        How many there were is read on the host alone: a device computes the momentum itself.
        """
        if self.updates.device.type == "cpu":
            self.follow(self.config.at(int(self.updates)), **model)
            self.updates += 1
            return
        skip = skipped()
        self.follow(self.momentum(self.updates.double()), **model)
        self.updates += 1 if skip is None else ~skip

    def momentum(self, updates: Tensor) -> Tensor:
        """`EmaConfig.at` on a device; updates () float64."""
        return ((1 + updates) / (10 + updates)).clamp(max=self.config.momentum)


def add_average(objective: Objective, config: EmaConfig | None) -> None:
    """Give an objective the average as a submodule, where one is asked for: before the engine is built, so that it is
    partitioned, saved and resumed with everything else."""
    if config is not None:
        objective.add_module(NAME, AveragedEncoder(config, _model_of(objective)))


def move_average(objective: Objective) -> None:
    """Move the average of an objective that has one; on every rank, after a step that was applied."""
    average = getattr(objective, NAME, None)
    if average is not None:
        cast(AveragedEncoder, average).move(_model_of(objective))


def _model_of(objective: Objective) -> dict[str, nn.Module]:
    return {part: objective.get_submodule(name) for part, name in objective.trained_parts().items()}


def encoder_of(objective: nn.Module) -> Encoder:
    """The encoder that a run is judged by and releases: the average where there is one."""
    return cast(Encoder, getattr(objective, NAME, objective).encoder)
