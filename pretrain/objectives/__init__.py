"""All that a run's `objective` may be: one of `single.SINGLE`, or a weighted sum of them."""

from typing import Annotated

from pydantic import Field

from scanfoundry.pretrain.objectives.protocol import Objective
from scanfoundry.pretrain.objectives.single import SINGLE, SingleConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig, WeightedSum

OBJECTIVES: dict[str, type[Objective]] = {**SINGLE, "sum": WeightedSum}
ObjectiveConfig = Annotated[SingleConfig | SumConfig, Field(discriminator="name")]

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig"]
