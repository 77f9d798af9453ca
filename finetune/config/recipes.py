"""How a pre-trained encoder is adapted: which of its parameters learn, and from when on."""

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from scanfoundry.configs.base import Config

RecipeName = Literal[
    "full", "warmup", "sawtooth", "staged", "frozen", "lora", "linear_probe", "attentive_probe", "knn"
]  # fmt: skip
Head = Literal["plain", "linear_probe", "attentive_probe", "knn"]
PROBES: tuple[RecipeName, ...] = ("linear_probe", "attentive_probe", "knn")  # on features that are computed once
GENTLE: tuple[RecipeName, ...] = ("warmup", "sawtooth")  # with a lower peak rate than from scratch
DISTILLED = "_distilled"  # ends the name of an arm that has a teacher
STAGED_SHARE = 0.2  # of the steps that a staged encoder stands still, where `schedule.frozen_steps` says nothing


class LoraConfig(Config):
    """Low-rank updates of the encoder (Hu et al. 2021, arXiv 2106.09685): w + alpha / rank * B A."""

    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=16.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ProbeConfig(Config):
    """Heads on frozen features."""

    views: int = Field(default=4, ge=1)  # of each training scan: as it is, and augmented
    neighbours: int = Field(default=20, ge=1)  # that vote; all training scans where there are fewer
    temperature: float = Field(default=0.07, gt=0)  # of their votes: exp(cosine / temperature)
    steps: int = Field(default=300, ge=1)  # of the attentive probe
    heads: int = Field(default=8, ge=1)  # of its attention, at most


@dataclass(frozen=True)
class Arm:
    """One way of training that a study compares."""

    name: str  # the recipe's, the start's or 'START_RECIPE', or 'scratch'; with a teacher '_distilled' follows
    recipe: RecipeName
    pretrained: bool
    distilled: bool = False  # whether a teacher takes part
    start: str = ""  # the name of the checkpoint, where there are several

    def taught(self) -> "Arm":
        """The same with a teacher."""
        return replace(self, name=f"{self.name}{DISTILLED}", distilled=True)

    def still(self, step: int, done: float, given: int) -> bool:
        """Whether the encoder stands still at this step; `done`: share of the training, `given`: what the schedule
        says of steps, 0 for nothing."""
        if self.recipe == "staged":
            return step < given if given else done < STAGED_SHARE
        return self.recipe == "frozen"


def head_of(recipe: RecipeName) -> Head:
    """The kind of head that a recipe trains."""
    return recipe if recipe in PROBES else "plain"  # type: ignore[return-value]
