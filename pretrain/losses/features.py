"""Means of the distances of features: tensors in, a scalar and one number for each sample out."""

from torch import Tensor

from scanfoundry.pretrain.distributed.collectives import rank_and_size, summed


def weighted_mean(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean of `values` with `weights`: of the batch of all ranks, and of each sample.

    Each rank returns a share whose mean over ranks is the batch's, as `masked_mse` does. Where no weight is above 0,
    the batch's mean is 0 with zero gradients, and a sample's is NaN.

    Args:
        values: (B, ...).
        weights: (B, ...) of the same shape.

    Returns:
        The scalar, and (B,) without gradients.
    """
    of_samples, counts = (values * weights).flatten(1).sum(1), weights.flatten(1).sum(1)
    of_a_rank = summed(counts.sum()) / rank_and_size()[1]
    return of_samples.sum() / of_a_rank.where(of_a_rank > 0, 1.0), of_samples.detach() / counts
