"""The backbones by name."""

from typing import Annotated

from pydantic import Field

from scanforge.backbones.mednext import MedNeXtConfig, MedNeXtEncoder
from scanforge.backbones.primus import PrimusConfig, PrimusEncoder
from scanforge.backbones.protocol import Encoder
from scanforge.backbones.resenc import ResEncConfig, ResEncEncoder
from scanforge.backbones.stunet import STUNetConfig, STUNetEncoder
from scanforge.backbones.vit import ViTConfig, ViTEncoder

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
