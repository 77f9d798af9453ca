"""The pre-training objectives by name. A new one is a file, a line here and a recipe, or a plug-in."""

from typing import TYPE_CHECKING

from scanfoundry.configs.registry import choice, registered
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.distil import DistilConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.protocol import ObjectiveOptions
from scanfoundry.pretrain.objectives.spark import SparkConfig
from scanfoundry.pretrain.objectives.token_distillation import TokenDistillationConfig

SINGLE = registered("objective", ObjectiveOptions, (  # type: ignore[type-abstract]
    MAEConfig,
    SparkConfig,
    ContrastiveConfig,
    BarlowTwinsConfig,
    DistilConfig,
    TokenDistillationConfig,
))  # fmt: skip

if TYPE_CHECKING:
    SingleConfig = ObjectiveOptions
else:
    SingleConfig = choice(SINGLE.values())
