"""Ranges between which shapes and appearances are drawn."""

from typing import Annotated

from pydantic import AfterValidator, Field, PositiveInt

from scanfoundry.configs.base import Config
from scanfoundry.datasets.augment.transforms import Amounts, Factors, Fractions, Probability

VERSION = 1  # of the drawing: a run of another one cannot be continued
MAX_SHAPES = 100  # with the core of each, the background and the body they fit into uint8


def _ordered(value: tuple[int, int]) -> tuple[int, int]:
    if value[0] > value[1]:
        raise ValueError("a range is (low, high)")
    return value


Number = Annotated[int, Field(ge=1, le=MAX_SHAPES)]
Numbers = Annotated[tuple[Number, Number], AfterValidator(_ordered)]
Thickness = Annotated[int, Field(ge=1)]
Thicknesses = Annotated[tuple[Thickness, Thickness], AfterValidator(_ordered)]


class SyntheticConfig(Config):
    """What is drawn. Lengths are shares of the crop's longest side, intensities of the range of the labels' means.

    Attributes:
        scans: how many count as one pass over the source, for its share in the mixture and the length of an epoch.
            None of them comes a second time.
        shapes: how many shapes lie in a scan.
        radius: of a shape.
        deformation: standard deviation of the displacement that bends all shapes of a scan together.
        elongation: of the voxels of a volume along one axis, as of a scan with thick slices.
        body: probability that the shapes lie in a body, with air around it.
        merged: probability that a label looks like another one in an appearance: the edge between them vanishes.
        contrast: how far apart the means of the labels lie.
        texture: standard deviation within a label, of a texture that is smooth over some voxels.
        grain: the same, from voxel to voxel.
        bias: standard deviation of the logarithm of the bias field.
        blur: standard deviation of the point spread along each axis, in voxels.
        thickness: of slices along one axis, in voxels.
        noise: standard deviation of the noise of the whole scan.
        rician: probability that the noise is Rician, as of a magnitude image, and not Gaussian.
        gamma: exponent of the intensities.
    """

    scans: PositiveInt = 1000
    shapes: Numbers = (5, 30)
    radius: Fractions = (0.06, 0.35)
    deformation: Amounts = (0.0, 0.05)
    elongation: Factors = (1.0, 3.0)
    body: Probability = 0.6
    merged: Probability = 0.1
    contrast: Fractions = (0.4, 1.0)
    texture: Amounts = (0.0, 0.08)
    grain: Amounts = (0.0, 0.06)
    bias: Amounts = (0.0, 0.3)
    blur: Amounts = (0.0, 1.2)
    thickness: Thicknesses = (1, 4)
    noise: Amounts = (0.0, 0.08)
    rician: Probability = 0.4
    gamma: Factors = (0.6, 1.7)
