"""The backbones by name. A new one is a file and a line here, or a plug-in (`configs/plugins.py`)."""

from typing import TYPE_CHECKING

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.protocol import Encoder, EncoderConfig
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.registry import choice, registered

BACKBONES = registered("backbone", EncoderConfig, (  # type: ignore[type-abstract]
    MedNeXtConfig,
    PrimusConfig,
    ResEncConfig,
    STUNetConfig,
    ViTConfig,
))  # fmt: skip

if TYPE_CHECKING:
    BackboneConfig = EncoderConfig
else:
    BackboneConfig = choice(BACKBONES.values())


def build(config: BackboneConfig) -> Encoder:
    """An encoder with fresh weights."""
    return config.build()
