"""The backbones by name. A new one is a file and a line here, or a plug-in (`configs/plugins.py`)."""

from functools import cache
from typing import Annotated

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.protocol import Encoder, EncoderConfig
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.registry import ByName, registered

OWN = (
    MedNeXtConfig,
    PrimusConfig,
    ResEncConfig,
    STUNetConfig,
    ViTConfig,
)


@cache
def backbones() -> dict[str, type[EncoderConfig]]:
    """All of them; plug-ins are loaded at the first call.

    Raises:
        UserError: a plug-in adds something else, or a name that is taken.
    """
    return registered("backbone", EncoderConfig, OWN)  # type: ignore[type-abstract]


EncoderConfig.registered = staticmethod(lambda: backbones().values())
BackboneConfig = Annotated[EncoderConfig, ByName()]


def build(config: BackboneConfig) -> Encoder:
    """An encoder with fresh weights."""
    return config.build()
