"""The pre-training objectives by name. A new one is a file, a line here and a recipe, or a plug-in."""

from functools import cache
from typing import Annotated

from scanfoundry.configs.registry import ByName, registered
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.dense_contrast import DenseContrastConfig
from scanfoundry.pretrain.objectives.distil import DistilConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.protocol import ObjectiveOptions
from scanfoundry.pretrain.objectives.spark import SparkConfig
from scanfoundry.pretrain.objectives.token_distillation import TokenDistillationConfig

OWN = (
    MAEConfig,
    SparkConfig,
    ContrastiveConfig,
    BarlowTwinsConfig,
    DenseContrastConfig,
    DistilConfig,
    TokenDistillationConfig,
)


@cache
def single_objectives() -> dict[str, type[ObjectiveOptions]]:
    """All but a sum of them; plug-ins are loaded at the first call.

    Raises:
        UserError: a plug-in adds something else, or a name that is taken.
    """
    return registered("objective", ObjectiveOptions, OWN)  # type: ignore[type-abstract]


ObjectiveOptions.registered = staticmethod(lambda: single_objectives().values())
SingleConfig = Annotated[ObjectiveOptions, ByName()]
