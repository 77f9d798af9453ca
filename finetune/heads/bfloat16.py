"""Where bfloat16 on a CPU must not be trusted."""

from collections.abc import Sequence

from scanfoundry.configs.geometry import Size3D


def gradients_fail(depth: int, strides: Sequence[Size3D]) -> bool:
    """Whether training a network of 3 x 3 x 3 convolutions under bfloat16 on a CPU gives wrong gradients.

    depth: of the input. strides: of all feature maps. Measured with torch 2.13 on avx512_bf16: the weight gradient of
    a Conv3d of kernel 3 and stride 1 is left-over memory (up to 1e36, or NaN) where its input has depth 2. Depth 1
    and depths from 3 on are right, and so are Conv2d, kernels of 1 and depthwise ones; float32 always is.
    """
    return any(-(-depth // stride[0]) == 2 for stride in strides)


def columns_fail(width: int, strides: Sequence[Size3D]) -> bool:
    """Whether a strided convolution among them gives or takes a single column: left-over memory too, in 2D and 3D.

    width: of the input. strides: of all feature maps. `DepthFreeConv3d` goes past it, MONAI's and the pyramid's own
    convolutions do not.
    """
    return any(-(-width // stride[2]) == 1 for stride in strides)
