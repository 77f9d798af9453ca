"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230) and its mixed-sample regulariser (Bandara et al. 2023).

Embeddings are standardised and correlated over the batch of all ranks. Their sums of squared correlations are
||A'B||^2 of A and B (N, F): where the batch N is much smaller than the width F, as it is for volumes, they are
taken from N x N products of rows instead of the F x F matrix (8192^2 floats are 256 MiB, and autograd keeps several).
"""

import torch
from torch import Tensor

from scanfoundry.pretrain.distributed.collectives import gathered, global_moments, rank_and_size, summed

EPS = 1e-5


def standardised(z: Tensor, eps: float = EPS) -> Tensor:
    """Each of the F dimensions of z (n, F) with mean 0 and biased variance 1 over all ranks, in float32 at least.

    Raises:
        ValueError: all ranks together have one row.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        if len(z) * rank_and_size()[1] < 2:
            raise ValueError("correlations need two rows or more over all ranks: enlarge the batch")
        mean, variance, _ = global_moments(z)
        return (z - mean) * (variance + eps).rsqrt()


def barlow_twins(first: Tensor, second: Tensor, redundancy: float = 0.0051) -> tuple[Tensor, Tensor]:
    """The two terms of eq. 1, sum_i (C_ii - 1)^2 and redundancy * sum_{i != j} C_ij^2; the loss is their sum.

    C = Z1' Z2 / N over all ranks. The second term is a rank's share, up to its size: the mean over ranks is the term.

    Args:
        first, second: standardised embeddings (n, F) of two views.
    """
    with torch.autocast(first.device.type, enabled=False):
        count = len(first) * rank_and_size()[1]
        diagonal = summed((first * second).sum(dim=0)) / count
        off_diagonal = squared_norm(first, second) / count**2 - diagonal.square().sum()
        return (diagonal - 1).square().sum(), redundancy * off_diagonal


def mixed_regulariser(
    mixed: Tensor, first: Tensor, second: Tensor, partner: Tensor, share: float, redundancy: float = 0.0051
) -> Tensor:
    """0.5 * redundancy * (||Cm1 - target1||^2 + ||Cm2 - target2||^2) (Mixed Barlow Twins, arXiv 2312.02151).

    mixed (n, F): the standardised embedding of share * x1 + (1 - share) * x2[partner], partner (n,) int64. If the
    network were linear, Zm would be share * Z1 + (1 - share) * Z2[partner]; the targets are that times Z1 and Z2, so
    each difference is R' Zv / N of the one residual R, and no F x F matrix of targets is made.
    """
    with torch.autocast(first.device.type, enabled=False):
        count = len(first) * rank_and_size()[1]
        residual = mixed - share * first - (1 - share) * second[partner]
        return 0.5 * redundancy * squared_norm(residual, torch.cat((first, second), dim=1)) / count**2


def squared_norm(a: Tensor, b: Tensor) -> Tensor:
    """||A'B||^2, Frobenius, of the rows (n, Fa) and (n, Fb) of all ranks: the mean over ranks of what is returned.

    As the sum over AA' * BB' where that is less arithmetic and traffic than the product A'B; both are exact.
    """
    _, size = rank_and_size()
    if len(a) * size * (a.shape[1] + b.shape[1]) < a.shape[1] * b.shape[1]:
        return size * ((a @ gathered(a).t()) * (b @ gathered(b).t())).sum()
    return summed(a.t() @ b).square().sum()
