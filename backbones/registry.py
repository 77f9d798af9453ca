"""The backbones by name."""

from typing import Annotated

from pydantic import Field

from scanfoundry.backbones.mednext import MedNeXtConfig, MedNeXtEncoder
from scanfoundry.backbones.primus import PrimusConfig, PrimusEncoder
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.resenc import ResEncConfig, ResEncEncoder
from scanfoundry.backbones.stunet import STUNetConfig, STUNetEncoder
from scanfoundry.backbones.vit import ViTConfig, ViTEncoder

BACKBONES: dict[str, type[Encoder]] = {
    "mednext": MedNeXtEncoder,
    "primus": PrimusEncoder,
    "resenc": ResEncEncoder,
    "stunet": STUNetEncoder,
    "vit": ViTEncoder,
}
TRANSFORMERS = frozenset({"primus", "vit"})  # the others are convolutional
BackboneConfig = Annotated[
    MedNeXtConfig | PrimusConfig | ResEncConfig | STUNetConfig | ViTConfig, Field(discriminator="name")
]


def build(config: BackboneConfig) -> Encoder:
    """An encoder with fresh weights; `config.name` chooses its class."""
    return BACKBONES[config.name](config)
