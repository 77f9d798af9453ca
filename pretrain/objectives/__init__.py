"""All that a run's `objective` may be: one of `registry.single_objectives`, or a weighted sum of them."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions
from scanfoundry.pretrain.objectives.registry import SingleConfig, single_objectives
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig

if TYPE_CHECKING:
    ObjectiveConfig = ObjectiveOptions
else:
    ObjectiveConfig = Annotated[SingleConfig | SumConfig, Field(discriminator="name")]


def objectives() -> dict[str, type[ObjectiveOptions]]:
    """All of them by name, a sum of others too."""
    return {**single_objectives(), "sum": SumConfig}


__all__ = ["Objective", "ObjectiveConfig", "objectives"]
