"""The pre-training objectives by name. A new one is a file, a line in each of the two names below, a recipe."""

from typing import Annotated

from pydantic import Field

from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwins, BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import Contrastive, ContrastiveConfig
from scanfoundry.pretrain.objectives.mae import MAE, MAEConfig
from scanfoundry.pretrain.objectives.protocol import Objective
from scanfoundry.pretrain.objectives.spark import Spark, SparkConfig

SINGLE: dict[str, type[Objective]] = {
    "mae": MAE,
    "spark": Spark,
    "contrastive": Contrastive,
    "barlow_twins": BarlowTwins,
}
SingleConfig = Annotated[MAEConfig | SparkConfig | ContrastiveConfig | BarlowTwinsConfig, Field(discriminator="name")]
