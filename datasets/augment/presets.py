"""Ready-made augmentation: `mild` for masked objectives, `strong` for two views of one scan.

Flips stand only where either side is as plausible. A CT, a chest X-ray and an MR of the body have a left and a right
that matter, and ultrasound has its probe at the top, so that at most W is mirrored there.
"""

from scanfoundry.datasets.augment.transforms import (
    Affine,
    BiasField,
    Blur,
    Brightness,
    Contrast,
    Crop,
    Erase,
    Flip,
    Gamma,
    Invert,
    LowResolution,
    Noise,
    Preset,
    QuarterTurn,
    Rician,
    Speckle,
    Transforms,
    Window,
)

_SIDES = Flip(axes=(2,))
_ANY = Transforms(flip=Flip(axes=(1, 2)), quarter_turn=QuarterTurn(probability=0.75))

_MILD = Transforms(affine=Affine(probability=0.2, scale=(0.8, 1.25)))
_STRONG = Transforms(
    affine=Affine(probability=0.5, anisotropy=1.1),
    crop=Crop(),
    blur=Blur(probability=0.2),
    low_resolution=LowResolution(probability=0.2),
    noise=Noise(probability=0.3),
    gamma=Gamma(probability=0.4),
    contrast=Contrast(probability=0.3),
    brightness=Brightness(probability=0.3),
    erase=Erase(probability=0.2),
)
# Microscopy and skin photographs have no up or down; mammograms exist of either side.
_FREE = dict.fromkeys(("sm", "gm", "xc"), _ANY)
_MILD_BY_MODALITY = {**_FREE, "us": Transforms(flip=_SIDES), "mg": Transforms(flip=_SIDES)}
_STRONG_BY_MODALITY = {
    **_FREE,
    # At the default window, noise of up to 40 HU.
    "ct": Transforms(
        window=Window(probability=0.5),
        noise=Noise(probability=0.3, sigma=(0.0, 0.04)),
        gamma=None,
        contrast=None,
        brightness=None,
    ),
    # Air is black in a magnitude image: what would lift it off the padding stays out.
    "mr": Transforms(
        bias_field=BiasField(probability=0.3),
        rician=Rician(probability=0.3),
        noise=None,
        contrast=None,
        brightness=None,
    ),
    "us": Transforms(flip=_SIDES, speckle=Speckle(probability=0.4), noise=None),
    "mg": Transforms(flip=_SIDES),
    "xr": Transforms(invert=Invert()),
    # Values are counts there, and zero means none.
    **dict.fromkeys(("pt", "nm"), Transforms(gamma=None, contrast=None, brightness=None)),
}

PRESETS: dict[Preset, tuple[Transforms, dict[str, Transforms]]] = {
    "none": (Transforms(), {}),
    "mild": (_MILD, _MILD_BY_MODALITY),
    "strong": (_STRONG, _STRONG_BY_MODALITY),
}
