"""The backbones by name."""

from typing import Annotated

from pydantic import Field

from scanforge.backbones.protocol import Encoder
from scanforge.backbones.stunet import STUNetConfig, STUNetEncoder
from scanforge.backbones.vit import ViTConfig, ViTEncoder

BACKBONES: dict[str, type[Encoder]] = {"stunet": STUNetEncoder, "vit": ViTEncoder}
BackboneConfig = Annotated[STUNetConfig | ViTConfig, Field(discriminator="name")]


def build(config: BackboneConfig) -> Encoder:
    """An encoder with fresh weights; `config.name` chooses its class."""
    return BACKBONES[config.name](config)
