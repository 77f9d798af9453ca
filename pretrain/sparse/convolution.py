"""Convolution of packed maps: only visible voxels are read and written (zeros stand for hidden ones)."""

from functools import partial
from itertools import product
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.convolution import DepthFreeConv3d
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.sparse.blocks import ActiveBlocks
from scanfoundry.pretrain.sparse.halo import Halo

# Windows of at most so many voxels for each of the kernel's go through a matrix product: measured in
# benchmarks/results/objectives.md; the routines for convolutions run at a tenth of their speed on them.
CROSSOVER = 2.5


def packed_conv(conv: DepthFreeConv3d, x: Tensor, blocks: ActiveBlocks) -> Tensor:
    """`conv` with same padding on a packed map: (N, d, h, w, C) -> (N, d / stride, ..., C').

    Equal to `conv` on the dense map with zeros on hidden voxels, on the visible ones. On scans of depth 1 the kernel's
    middle slice is used and the depth's stride has no effect.
    """
    return conv(x, partial(_walk, conv, blocks))


def _walk(conv: nn.Conv3d, blocks: ActiveBlocks, x: Tensor) -> Tensor:
    weight, bias = conv.weight, conv.bias
    stride, kernel = cast(Size3D, tuple(conv.stride)), cast(Size3D, tuple(conv.kernel_size))
    if blocks.grid[0] == x.shape[1] == 1:
        weight, stride, kernel = weight[:, :, kernel[0] // 2, None], (1, *stride[1:]), (1, *kernel[1:])
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if kernel == (1, 1, 1) and conv.groups == 1:
        return F.linear(x[:, :: stride[0], :: stride[1], :: stride[2]], weight.flatten(1), bias)
    size, width = (x.shape[1], x.shape[2], x.shape[3]), (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
    return PackedConv.apply(x, weight, bias, stride, conv.groups, blocks.halo(size, width))


class PackedConv(torch.autograd.Function):
    """Convolution of every block's window; keeps the map for the backward pass, not the larger windows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Size3D, groups: int, halo: Halo
    ) -> Tensor:
        """x (N, d, h, w, C), weight (C', C / groups, kd, kh, kw); `halo` holds as much as the kernel reaches."""
        ctx.stride, ctx.groups, ctx.halo = stride, groups, halo
        ctx.save_for_backward(x, weight)
        return _conv(halo.gather(x), weight, bias, stride, groups)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to x, weight and bias."""
        x, weight = ctx.saved_tensors
        stride, groups, halo = ctx.stride, ctx.groups, ctx.halo
        windows, need = halo.gather(x), list(ctx.needs_input_grad[:3])
        grad, of_x = grad.contiguous(), None
        if need[0] and groups == len(weight) and stride == (1, 1, 1):
            # Depthwise: the transpose is the convolution with the kernel turned about, four times faster on a CPU.
            of_x, need[0] = _conv(halo.gather(grad), weight.flip(2, 3, 4), None, stride, groups), False
        if _by_matrix(windows, weight, stride, groups):
            of_windows, of_weight, of_bias = _matrix_backward(grad, windows, weight, stride, need)
        else:
            of_windows, of_weight, of_bias = _conv_backward(grad, windows, weight, stride, groups, need)
        if of_windows is not None:
            of_x = halo.scatter(of_windows)
        return of_x, of_weight, of_bias, None, None, None


def _by_matrix(windows: Tensor, weight: Tensor, stride: Size3D, groups: int) -> bool:
    voxels = windows.shape[1] * windows.shape[2] * windows.shape[3]
    # A strided convolution that gives a single column is left-over memory in bfloat16 on a CPU, see `DepthFreeConv3d`.
    column = stride[2] > 1 and windows.shape[3] - weight.shape[4] < stride[2] and weight.shape[4] > 1
    return groups == 1 and (column or voxels <= CROSSOVER * weight[0, 0].numel())


def _conv(windows: Tensor, weight: Tensor, bias: Tensor | None, stride: Size3D, groups: int) -> Tensor:
    """Without padding: (N, D, H, W, C) -> (N, d, h, w, C')."""
    if _by_matrix(windows, weight, stride, groups):
        seen = _neighbourhoods(windows, weight, stride)
        return F.linear(seen.reshape(*seen.shape[:4], -1), weight.flatten(1), bias)
    if weight.shape[2] == 1:
        flat = F.conv2d(_image(windows).squeeze(2), weight.squeeze(2), bias, stride[1:], groups=groups)
        return _map(flat.unsqueeze(2))
    return _map(F.conv3d(_image(windows), weight, bias, stride, groups=groups))


def _conv_backward(
    grad: Tensor, windows: Tensor, weight: Tensor, stride: Size3D, groups: int, need: list[bool]
) -> tuple[Tensor | None, ...]:
    """Gradients of `_conv` with respect to windows, weight and bias."""
    flat = weight.shape[2] == 1
    tensors = [_image(grad), _image(windows), weight]
    if flat:
        tensors = [x.squeeze(2) for x in tensors]
    steps = stride[1:] if flat else stride
    zeros, ones = [0] * len(steps), [1] * len(steps)
    of_windows, of_weight, of_bias = torch.ops.aten.convolution_backward(
        *tensors, [len(weight)], steps, zeros, ones, False, zeros, groups, need
    )
    if of_windows is not None:
        of_windows = _map(of_windows.view(len(windows), windows.shape[-1], *windows.shape[1:4]))
    return of_windows, None if of_weight is None else of_weight.view_as(weight), of_bias


def _matrix_backward(
    grad: Tensor, windows: Tensor, weight: Tensor, stride: Size3D, need: list[bool]
) -> tuple[Tensor | None, ...]:
    """The same by matrix products."""
    seen, rows = _neighbourhoods(windows, weight, stride), grad.view(-1, len(weight))
    of_weight = (rows.T @ seen.reshape(len(rows), -1)).view_as(weight) if need[1] else None
    of_bias = rows.sum(0) if need[2] else None
    if not need[0]:
        return None, of_weight, of_bias
    of_seen = (rows @ weight.flatten(1)).view(seen.shape)
    of_windows = torch.zeros_like(windows)
    places = _neighbourhoods(of_windows, weight, stride)
    for i, j, k in product(*map(range, weight.shape[2:])):
        places[..., i, j, k] += of_seen[..., i, j, k]
    return of_windows, of_weight, of_bias


def _neighbourhoods(windows: Tensor, weight: Tensor, stride: Size3D) -> Tensor:
    """What the kernel sees at each place, a view: (N, D, H, W, C) -> (N, d, h, w, C, kd, kh, kw)."""
    for axis in range(3):
        windows = windows.unfold(1 + axis, weight.shape[2 + axis], stride[axis])
    return windows


def _image(x: Tensor) -> Tensor:
    """Packed map as (N, C, d, h, w), channels last in memory: what convolutions are fastest on."""
    return x.movedim(-1, 1)


def _map(image: Tensor) -> Tensor:
    return image.movedim(1, -1).contiguous()
