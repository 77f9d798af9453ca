"""All that a run's `objective` may be: one of `registry.SINGLE`, or a weighted sum of them."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions
from scanfoundry.pretrain.objectives.registry import SINGLE, SingleConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig

OBJECTIVES: dict[str, type[ObjectiveOptions]] = {**SINGLE, "sum": SumConfig}
if TYPE_CHECKING:
    ObjectiveConfig = ObjectiveOptions
else:
    ObjectiveConfig = Annotated[SingleConfig | SumConfig, Field(discriminator="name")]

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig"]
