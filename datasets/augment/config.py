"""Which transforms each modality gets, and the size of the views."""

from typing import Annotated

from pydantic import Field, model_validator

from scanfoundry.configs.base import Config
from scanfoundry.datasets.augment.presets import PRESETS
from scanfoundry.datasets.augment.transforms import Preset, Transforms
from scanfoundry.datasets.modality import Modality

Side = Annotated[int, Field(ge=1)]
_ANY_OTHER = "any other modality"  # a name that no modality can have


class AugmentConfig(Config):
    """Augmentation of one view.

    Attributes:
        preset: what `default` and `modalities` build on: nothing, or `presets.PRESETS`.
        default: switches for every modality, over the preset's for it.
        modalities: switches by modality ('ct', 'mr', 'us', ...), over `default`.
        size_2d, size_3d: (H, W) and (D, H, W) of the views in voxels; null: as the crops come. Without `crop` a smaller
            view is cut out, a larger one padded, at the crop's own resolution.

    A switch is a whole transform or null: setting one replaces all of its settings.
    """

    preset: Preset = "none"
    default: Transforms = Transforms()
    modalities: dict[Modality, Transforms] = {}
    size_2d: tuple[Side, Side] | None = None
    size_3d: tuple[Annotated[int, Field(ge=2)], Side, Side] | None = None

    def of(self, modality: str) -> Transforms:
        """The transforms that a sample of `modality` gets."""
        general, special = PRESETS[self.preset]
        for layer in (special.get(modality), self.default, self.modalities.get(modality)):
            general = layer.over(general) if layer else general
        return general

    @model_validator(mode="after")
    def _check(self) -> "AugmentConfig":
        if self.of("ct").invert:
            raise ValueError("invert: Hounsfield units are never inverted; set modalities.ct.invert to null")
        for modality in (_ANY_OTHER, *self.modalities):
            if modality != "ct" and self.of(modality).window:
                raise ValueError(f"window: only CT has one, not {modality}; set it in modalities.ct")
        return self
