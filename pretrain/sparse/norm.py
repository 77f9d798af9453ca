"""Instance normalisation of packed maps over each sample's visible voxels, with what follows it in a block."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.pretrain.sparse.blocks import ActiveBlocks

CHUNK = 1 << 20  # values worked on at a time on a CPU, so that they stay in its cache


def packed_norm(
    norm: nn.InstanceNorm3d | nn.GroupNorm, x: Tensor, blocks: ActiveBlocks, slope: float = 1.0,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """LeakyReLU of `slope` (1: none) of the norm of x (N, d, h, w, C), plus `residual` if there is one.

    A GroupNorm must have as many groups as channels. Statistics are float32 at least; the result is of x's type.
    """
    return PackedNorm.apply(x, norm.weight, norm.bias, residual, blocks, norm.eps, slope)


class PackedNorm(torch.autograd.Function):
    """Keeps x and the result, which the next layer keeps too; autograd would keep five maps."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, blocks: ActiveBlocks, eps: float,
        slope: float,
    ) -> Tensor:  # fmt: skip
        """See `packed_norm`."""
        v, out = _voxels(x), torch.empty_like(x)
        wide = torch.promote_types(x.dtype, torch.float32)
        mean = blocks.mean(torch.cat([v[part].sum(1, dtype=wide) for part in _parts(v)]), v.shape[1])
        square = torch.cat([(v[part] - mean[part, None]).square_().sum(1) for part in _parts(v)])
        rstd = blocks.mean(square, v.shape[1]).add_(eps).rsqrt_()  # (N, C), as the mean is
        scale, shift = rstd * weight.to(wide), bias.to(wide)
        for part in _parts(v):
            y = (v[part] - mean[part, None]).mul_(scale[part, None]).add_(shift)
            if residual is not None:
                y.add_(_voxels(residual)[part])
            _voxels(out)[part] = y if slope == 1 else F.leaky_relu(y, slope, inplace=True)
        ctx.save_for_backward(x, out, mean, rstd, weight)
        ctx.blocks, ctx.slope, ctx.residual = blocks, slope, None if residual is None else residual.dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to x, weight, bias and residual."""
        x, out, mean, rstd, weight = ctx.saved_tensors
        v, of_x, slope = _voxels(x), torch.empty_like(x), ctx.slope
        if slope != 1:
            grad = torch.ops.aten.leaky_relu_backward(grad, out, slope, True)
        g, shifts, scales = _voxels(grad.contiguous()), [], []
        for part in _parts(v):
            shifts.append(g[part].sum(1, dtype=mean.dtype))
            normed = (v[part] - mean[part, None]).mul_(rstd[part, None])
            scales.append(normed.mul_(g[part]).sum(1))
        shift, scale = torch.cat(shifts), torch.cat(scales)
        mean_shift = ctx.blocks.mean(shift, v.shape[1])
        mean_scale = ctx.blocks.mean(scale, v.shape[1]) * rstd
        factor = rstd * weight.to(rstd.dtype)
        for part in _parts(v):
            y = (v[part] - mean[part, None]).mul_(mean_scale[part, None]).add_(mean_shift[part, None])
            _voxels(of_x)[part] = torch.sub(g[part], y, out=y).mul_(factor[part, None])
        of_residual = None if ctx.residual is None else grad.to(ctx.residual)
        return of_x, scale.sum(0).to(weight.dtype), shift.sum(0).to(weight.dtype), of_residual, None, None, None


def _parts(v: Tensor) -> Iterator[slice]:
    """Runs of blocks of (N, voxels, C): all at once on a GPU, what its cache holds on a CPU."""
    step = len(v) if v.device.type != "cpu" else max(1, CHUNK // v[0].numel())
    return (slice(start, start + step) for start in range(0, len(v), step))


def _voxels(x: Tensor) -> Tensor:
    return x.view(len(x), -1, x.shape[-1])
