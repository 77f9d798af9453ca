"""MedNeXt (Roy et al. 2023, arXiv 2303.09975): its blocks, the contracting path, the whole network."""

from scanfoundry.backbones.mednext.decoder import MedNeXt
from scanfoundry.backbones.mednext.encoder import MedNeXtConfig, MedNeXtEncoder

__all__ = ["MedNeXt", "MedNeXtConfig", "MedNeXtEncoder"]
