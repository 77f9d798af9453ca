"""The pre-training objectives by name. A new one is a file, a line in each of the two names below, a recipe."""

from typing import Annotated

from pydantic import Field

from scanforge.pretrain.objectives.mae import MAE, MAEConfig
from scanforge.pretrain.objectives.protocol import Objective, Reconstruction
from scanforge.pretrain.objectives.spark import Spark, SparkConfig

OBJECTIVES: dict[str, type[Objective]] = {"mae": MAE, "spark": Spark}
ObjectiveConfig = Annotated[MAEConfig | SparkConfig, Field(discriminator="name")]

__all__ = ["OBJECTIVES", "Objective", "ObjectiveConfig", "Reconstruction"]
