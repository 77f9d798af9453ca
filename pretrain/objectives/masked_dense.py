"""STU-Net's encoder on the visible blocks only, computed densely: multiply by the mask after every convolution.

The reference for any faster engine of the same signature. The input and every convolution's output are zero
on hidden voxels, so that a convolution at the border of a visible block meets zeros and never a hidden voxel
(masking the outputs alone leaks a border of one voxel at the first layer). InstanceNorm takes its statistics
over the visible voxels of each sample. The mask is an argument all the way: two views, activation
checkpointing and threads cannot mix masks up.
"""

from collections.abc import Iterable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanforge.backbones.stunet import LEAK, BasicResBlock, STUNetEncoder
from scanforge.pretrain.masking import Triple, enlarge

SPACE = (2, 3, 4)


def level_masks(visible: Tensor, block: Triple, strides: tuple[Triple, ...]) -> list[Tensor]:
    """The visible blocks (B, 1, d, h, w) as masks of the type of `visible` at each level's resolution."""
    masks: list[Tensor] = []
    for stride in strides:
        size = tuple(b // s for b, s in zip(block, stride, strict=True))
        known = [m for m, s in zip(masks, strides, strict=False) if s == stride]  # levels of the same size share it
        masks.append(known[0] if known else enlarge(visible, (size[0], size[1], size[2])))
    return masks


def masked_features(encoder: STUNetEncoder, voxels: Tensor, masks: list[Tensor]) -> list[Tensor]:
    """The encoder's six feature maps with zeros on hidden voxels; they depend on visible voxels alone.

    voxels: (B, C, D, H, W); masks: one (B, 1, d, h, w) for each level, 1 where visible, from `level_masks`.
    """
    x, features = voxels * masks[0], []
    for stage, mask in zip(encoder.conv_blocks_context, masks, strict=True):
        for block in cast(Iterable[BasicResBlock], stage):
            x = masked_block(block, x, mask)
        features.append(x)
    return features


def masked_block(block: BasicResBlock, x: Tensor, mask: Tensor) -> Tensor:
    """`BasicResBlock.forward` on the visible voxels; x is zero on hidden ones, and so is the result."""
    y = F.leaky_relu(masked_instance_norm(block.conv1(x), mask, block.norm1), LEAK, inplace=True)
    y = masked_instance_norm(block.conv2(y), mask, block.norm2)
    y = y + x if block.conv3 is None else torch.addcmul(y, block.conv3(x), mask)
    return F.leaky_relu(y, LEAK, inplace=True)


def masked_instance_norm(x: Tensor, mask: Tensor, norm: nn.InstanceNorm3d) -> Tensor:
    """Instance norm of x (B, C, D, H, W) over the voxels where mask (B, 1, D, H, W) is 1; zero elsewhere.

    What x holds on hidden voxels does not matter. Statistics are float32 at least.
    """
    return MaskedInstanceNorm.apply(x, mask, norm.weight, norm.bias, norm.eps)


class MaskedInstanceNorm(torch.autograd.Function):
    """The norm with its gradient by hand: autograd would keep four maps of the size of x, this keeps one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        """See `masked_instance_norm`."""
        wide = torch.promote_types(x.dtype, torch.float32)
        m = mask.to(wide)
        count = m.sum(dim=SPACE, keepdim=True)
        y = x.to(wide) * m
        mean = y.sum(dim=SPACE, keepdim=True) / count
        y = y.addcmul_(mean, m, value=-1)  # zero on hidden voxels still
        rstd = (y.square().sum(dim=SPACE, keepdim=True) / count + eps).rsqrt()
        y = y.mul_(rstd)
        ctx.save_for_backward(y, mask, weight, rstd, count)
        scale, shift = (p.to(wide).view(1, -1, 1, 1, 1) for p in (weight, bias))
        return (y * scale).addcmul_(m, shift).to(x.dtype)  # in the memory format of x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients with respect to x, weight and bias."""
        y, mask, weight, rstd, count = ctx.saved_tensors
        g = grad.to(y.dtype) * mask
        grad_shift = g.sum(dim=SPACE, keepdim=True)
        grad_scale = (g * y).sum(dim=SPACE, keepdim=True)
        g = g.addcmul_(grad_shift / count, mask.to(y.dtype), value=-1).addcmul_(y, grad_scale / count, value=-1)
        g = g.mul_(rstd * weight.to(y.dtype).view(1, -1, 1, 1, 1))
        to_channel = [s.sum(dim=0).flatten().to(weight.dtype) for s in (grad_scale, grad_shift)]
        return g.to(grad.dtype), None, *to_channel, None
