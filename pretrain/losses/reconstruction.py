"""The loss of masked image modelling: squared error on hidden patches, against a normalised target.

Shapes: patches (B, L, V, C) are L patches of V voxels and C channels; valid (B, L, V, 1) is False on voxels that must
not count (padding, excluded regions).
"""

import torch
from torch import Tensor

from scanfoundry.pretrain.distributed.collectives import rank_and_size, summed


def patch_statistics(patches: Tensor, valid: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and sqrt(variance + eps), each (B, L, 1, 1), over the valid voxels and the channels of each patch.

    The variance is the unbiased one, as in MAE (He et al. 2022, `norm_pix_loss`) and SparK (Tian et al. 2023).
    """
    weight = valid.to(patches.dtype).expand_as(patches)
    count = weight.sum(dim=(2, 3), keepdim=True)
    mean = (patches * weight).sum(dim=(2, 3), keepdim=True) / count.clamp(min=1)
    square = ((patches - mean) * weight).square().sum(dim=(2, 3), keepdim=True)
    return mean, (square / (count - 1).clamp(min=1) + eps).sqrt()


def patch_normalise(patches: Tensor, valid: Tensor, eps: float) -> Tensor:
    """Each patch with mean 0 and variance 1.

    eps floors the standard deviation of flat patches at sqrt(eps), in the units of the voxels: without it
    the noise of the air around a body counts as much as anatomy does (SparK issue 80).
    """
    mean, std = patch_statistics(patches, valid, eps)
    return (patches - mean) / std


def masked_mse(prediction: Tensor, target: Tensor, masked: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared error over the valid voxels of the masked patches: of the batch, a scalar, and of each sample (B,).

    Without padding this is MAE's mean over masked patches of the mean over voxels. The batch is that of all ranks: each
    returns a share whose mean over ranks is the loss, so that a rank whose scans are mostly padding does not count as
    much as the others. Where nothing is both masked and valid, the batch's is 0 with zero gradients, a sample's is NaN.

    Args:
        masked: (B, L) bool.
    """
    weight = (masked[:, :, None, None] & valid).to(prediction.dtype)  # (B, L, V, 1)
    error = ((prediction - target).square() * weight).flatten(1).sum(1)  # (B,)
    count = weight.flatten(1).sum(1) * prediction.shape[-1]
    of_a_rank = summed(count.sum()) / rank_and_size()[1]
    return error.sum() / torch.where(of_a_rank > 0, of_a_rank, 1.0), error.detach() / count


def reconstruction_loss(
    prediction: Tensor, patches: Tensor, masked: Tensor, valid: Tensor, normalise: bool, eps: float
) -> tuple[Tensor, Tensor]:
    """`masked_mse` in float32 or better, against the patches as they are or normalised each."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    target = patches.to(wide)
    if normalise:
        target = patch_normalise(target, valid, eps)
    return masked_mse(prediction.to(wide), target, masked, valid)
