"""The switches of augmentation: one small configuration per transform, and the set that a modality gets.

Every transform is drawn for each sample with its `probability`; `ranges` says between which bounds its parameters
are then drawn, evenly. Intensities are in units of the normalised scan: a standard deviation of the foreground, or
half the window of a CT.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from scanfoundry.configs.base import Config

Range = tuple[float, float]
_ORDER = 3  # of the bias field's polynomials
BIAS_TERMS = [
    (d, h, w)
    for d in range(_ORDER + 1)
    for h in range(_ORDER + 1 - d)
    for w in range(_ORDER + 1 - d - h)
    if d + h + w > 0
]
MAX_HOLES = 8


def _ordered(value: tuple[Any, Any]) -> tuple[Any, Any]:
    if value[0] > value[1]:
        raise ValueError("a range is (low, high)")
    return value


Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Factors = Annotated[tuple[Positive, Positive], AfterValidator(_ordered)]
Fractions = Annotated[tuple[Fraction, Fraction], AfterValidator(_ordered)]
Amounts = Annotated[tuple[NotNegative, NotNegative], AfterValidator(_ordered)]
Coarser = Annotated[tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]], AfterValidator(_ordered)]
Count = Annotated[int, Field(ge=1, le=MAX_HOLES)]
Counts = Annotated[tuple[Count, Count], AfterValidator(_ordered)]
UNIT: Range = (0.0, 1.0)


def _log(bounds: Range) -> Range:
    return math.log(bounds[0]), math.log(bounds[1])


def _both(bound: float) -> Range:
    return -bound, bound


class Transform(Config):
    """What all transforms share."""

    probability: Probability = 1.0

    def ranges(self) -> list[Range]:
        """Bounds of the numbers that are drawn for it; how many does not depend on the settings."""
        raise NotImplementedError


class Flip(Transform):
    """Mirror along each of `axes` (0 = D, 1 = H, 2 = W) or not, evenly. Only where anatomy allows."""

    axes: tuple[Annotated[int, Field(ge=0, le=2)], ...] = ()

    def ranges(self) -> list[Range]:
        return [UNIT if axis in self.axes else (1.0, 1.0) for axis in range(3)]


class QuarterTurn(Transform):
    """One, two or three quarter turns in the plane (H, W); a half turn where the view is not square."""

    def ranges(self) -> list[Range]:
        return [UNIT]


class Affine(Transform):
    """Rotation, zoom, stretch and shift about the middle of the view.

    Attributes:
        rotation: degrees, at most, in the plane (H, W).
        tilt: degrees, at most, out of the plane; nothing in 2D, and times D / max(H, W) in flat crops: their slices are
            mostly thick, and a tilt that is mild in voxels would be a large one in mm.
        scale: factors that structures grow by; anisotropy: at most that factor more or less along each axis.
        translation: at most that fraction of the scan's crop, along each axis.
    """

    rotation: Annotated[float, Field(ge=0, le=180)] = 15.0
    tilt: Annotated[float, Field(ge=0, le=180)] = 5.0
    scale: Factors = (0.9, 1.1)
    anisotropy: Annotated[float, Field(ge=1)] = 1.05
    translation: Annotated[float, Field(ge=0, le=1)] = 0.0

    def ranges(self) -> list[Range]:
        turn, tilt, stretch = math.radians(self.rotation), math.radians(self.tilt), math.log(self.anisotropy)
        return [
            *(_both(turn), _both(tilt), _both(tilt), _log(self.scale)),
            *([_both(stretch)] * 3 + [_both(self.translation)] * 3),
        ]


class Crop(Transform):
    """Random resized crop: a window of `scale` of the area (2D) or volume, sides at most `ratio` from equal."""

    scale: Fractions = (0.4, 1.0)
    ratio: Annotated[float, Field(ge=1)] = 1.33

    def ranges(self) -> list[Range]:
        stretch = math.log(self.ratio)
        return [self.scale, _both(stretch), _both(stretch)]


class BiasField(Transform):
    """Smooth gain of a receive coil (MR): between exp(-strength) and exp(strength), third-order polynomials."""

    strength: Amounts = (0.1, 0.5)

    def ranges(self) -> list[Range]:
        return [self.strength, *[_both(1.0)] * len(BIAS_TERMS)]


class Blur(Transform):
    """Gaussian blur; standard deviations in voxels, one per axis."""

    sigma: Amounts = (0.3, 0.8)

    def ranges(self) -> list[Range]:
        return [self.sigma] * 3


class LowResolution(Transform):
    """Voxels averaged to coarser ones by `zoom`, then interpolated back; with `one_axis`, along one axis alone.

    In 3D the one axis is D half of the time (thick slices); otherwise each is as likely.
    """

    zoom: Coarser = (1.25, 2.0)
    one_axis: Probability = 0.5

    def ranges(self) -> list[Range]:
        # The first is below 0 with probability `one_axis`.
        return [(-self.one_axis, 1 - self.one_axis), UNIT, *[_log(self.zoom)] * 3]


class Speckle(Transform):
    """Multiplicative noise of ultrasound; `grain`: its correlation length in voxels, 0 for none."""

    sigma: Amounts = (0.03, 0.12)
    grain: Amounts = (0.5, 1.0)

    def ranges(self) -> list[Range]:
        return [self.sigma, self.grain]


class Noise(Transform):
    """Additive Gaussian noise."""

    sigma: Amounts = (0.0, 0.1)

    def ranges(self) -> list[Range]:
        return [self.sigma]


class Rician(Noise):
    """Noise of a magnitude image (MR): Gaussian in both quadrature channels, so that air turns brighter."""


class Window(Transform):
    """Jitter of the CT window: `width` of the stored one, moved by up to `shift` of the room left inside it."""

    width: Fractions = (0.85, 1.0)
    shift: Annotated[float, Field(ge=0, le=1)] = 1.0

    def ranges(self) -> list[Range]:
        return [self.width, _both(self.shift)]


class Gamma(Transform):
    """Power law over the range of the sample."""

    gamma: Factors = (0.7, 1.5)

    def ranges(self) -> list[Range]:
        return [_log(self.gamma)]


class Contrast(Transform):
    """Distances to the sample's mean times a factor."""

    factor: Factors = (0.75, 1.33)

    def ranges(self) -> list[Range]:
        return [_log(self.factor)]


class Brightness(Transform):
    """A constant added, at most `shift` up or down."""

    shift: NotNegative = 0.3

    def ranges(self) -> list[Range]:
        return [_both(self.shift)]


class Invert(Transform):
    """Bright becomes dark, within the range of the sample: confused MONOCHROME1 and MONOCHROME2. Never for CT."""

    probability: Probability = 0.1

    def ranges(self) -> list[Range]:
        return []


class Erase(Transform):
    """`holes` boxes, each side `size` of the view's, filled with the sample's mean."""

    holes: Counts = (1, 3)
    size: Fractions = (0.05, 0.2)

    def ranges(self) -> list[Range]:
        return [(self.holes[0], self.holes[1] + 1), *([self.size] * 3 + [UNIT] * 3) * MAX_HOLES]


class Transforms(Config):
    """The transforms of a modality; null switches one off. They are applied in this order."""

    flip: Flip | None = None
    quarter_turn: QuarterTurn | None = None
    affine: Affine | None = None
    crop: Crop | None = None
    bias_field: BiasField | None = None
    blur: Blur | None = None
    low_resolution: LowResolution | None = None
    speckle: Speckle | None = None
    noise: Noise | None = None
    rician: Rician | None = None
    window: Window | None = None
    gamma: Gamma | None = None
    contrast: Contrast | None = None
    brightness: Brightness | None = None
    invert: Invert | None = None
    erase: Erase | None = None

    def over(self, below: "Transforms") -> "Transforms":
        """`below` with those switches replaced that were set here, to null or to a transform."""
        return below.model_copy(update={name: getattr(self, name) for name in self.model_fields_set})

    @model_serializer(mode="wrap")
    def _set_here(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Only the switches that were set here: a null that nobody wrote would switch off the preset's, once reloaded.

        A launched run, and whoever takes the `config.yaml` of a run, reads what was dumped.
        """
        return {name: value for name, value in dump(self).items() if name in self.model_fields_set}


# Every transform and its place in a sample's draws: a new one belongs at the end, or all draws change.
KINDS: dict[str, type[Transform]] = {
    **{"flip": Flip, "quarter_turn": QuarterTurn, "affine": Affine, "crop": Crop, "bias_field": BiasField},
    **{"blur": Blur, "low_resolution": LowResolution, "speckle": Speckle, "noise": Noise, "rician": Rician},
    **{"window": Window, "gamma": Gamma, "contrast": Contrast, "brightness": Brightness, "invert": Invert},
    **{"erase": Erase},
}
Preset = Literal["none", "mild", "strong"]
