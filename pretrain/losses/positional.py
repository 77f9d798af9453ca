"""Contrastive losses with soft positives: crops that lie at the same place of different scans show the same anatomy.

The form is that of supervised contrastive learning (Khosla et al. 2020, arXiv 2004.11362, eq. 2) with a weight for each
positive. Which rows are positives follows from positions, as in PCL (Zeng et al. 2021, arXiv 2106.09157), of
which this is the loss where the kernel is 'uniform'. Without soft positives the losses are those of `contrastive`,
whose conventions hold here: pairs (n, F), one number for each pair (n,), the run's loss is the mean over all ranks.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from scanfoundry.pretrain.distributed.collectives import gathered, rank_and_size
from scanfoundry.pretrain.losses.contrastive import log_sum, negative_rows, normalised, over_directions, wide

Kernel = Literal["uniform", "gaussian"]
KERNELS: dict[Kernel, Callable[[Tensor, float], Tensor]] = {
    "uniform": lambda distance, bandwidth: (distance < bandwidth).to(distance.dtype),
    "gaussian": lambda distance, bandwidth: (-0.5 * (distance / bandwidth).square()).exp(),
}
MIDDLE = 0.5  # the centre of a crop along an axis of which it holds everything


class Relations(NamedTuple):
    """What the rows of all ranks are to the 2n rows of this rank; a rank's rows are its n first views, then n second.

    Attributes:
        weights: (2n, W 2n) between 0 and 1, of a row as a positive; 1 for the other view of a pair, 0 for itself.
        compared: (2n, W 2n) bool, which rows stand in the denominator: all positives and negatives.
    """

    weights: Tensor
    compared: Tensor

    @property
    def soft(self) -> Tensor:
        """For each pair (n,) the sum of the weights of other pairs' rows, mean over both directions."""
        return over_directions(self.weights.sum(dim=1) - 1)


@torch.no_grad()
def position_relations(
    positions: Tensor, groups: Tensor, same: Tensor | None, kernel: Kernel = "uniform", bandwidth: float = 0.1
) -> Relations:
    """Relations by the distance of positions.

    Two rows are comparable where both have a position and are of one group. Their distance alone then decides what
    they are to each other, also in one scan. Others are negatives, unless their pairs share an id.

    Args:
        positions: (n, 2, A) of each view of each pair; NaN along an axis that tells no places apart, along all of them
            where the view has no position.
        groups: (n, 2) int64; positions of different groups cannot be compared.
        same: ids of the pairs, as in the losses of `contrastive`.
        kernel: weight of a distance: 'uniform' is 1 below the bandwidth, 'gaussian' falls with it as deviation.
        bandwidth: in the unit of the positions.
    """
    n, (rank, _) = len(positions), rank_and_size()
    own, own_groups = positions.transpose(0, 1).flatten(0, 1), groups.t().flatten()
    everyone, every_group = gathered(own), gathered(own_groups)
    placed = ~own.isnan().all(dim=1)
    comparable = placed[:, None] & ~everyone.isnan().all(dim=1) & (own_groups[:, None] == every_group)
    difference = own.nan_to_num(MIDDLE)[:, None] - everyone.nan_to_num(MIDDLE)
    weights = KERNELS[kernel](difference.square().sum(dim=2).sqrt(), bandwidth).where(comparable, 0.0)
    rows = torch.arange(2 * n, device=positions.device)
    itself, partner = rank * 2 * n + rows, rank * 2 * n + (rows + n) % (2 * n)
    compared = negative_rows(n, same, positions.device) | comparable
    for matrix in (weights, compared):
        matrix[rows, itself], matrix[rows, partner] = 0, 1
    return Relations(weights, compared)


def soft_nt_xent(first: Tensor, second: Tensor, temperature: float, relations: Relations) -> Tensor:
    """NT-Xent of each pair (n,): -sum_j w_ij log softmax_j(cos_ij / T) / sum_j w_ij of both its rows."""
    with wide(first):
        return over_directions(_mean_log_odds(_logits(first, second, temperature), relations))


def soft_dcl(first: Tensor, second: Tensor, temperature: float, relations: Relations) -> Tensor:
    """DCL of each pair (n,): positives leave the denominator, a soft one by the share that is its weight."""
    with wide(first):
        kept = torch.log1p(-relations.weights)  # -inf for a weight of 1
        logits = _logits(first, second, temperature)
        return over_directions(_mean_log_odds(logits, relations, kept.to(logits.dtype)))


def soft_moco_v3(
    queries: tuple[Tensor, Tensor], keys: tuple[Tensor, Tensor], temperature: float, relations: Relations
) -> Tensor:
    """MoCo v3's loss of each pair (n,): q1 finds k2 and the second keys that are its soft positives, q2 the first."""
    with wide(queries[0]):
        n, losses = len(queries[0]), []
        for view, query in enumerate(queries):
            between = [m.view(2, n, -1, 2, n)[view, :, :, 1 - view].flatten(1) for m in relations]
            q, k = normalised(query), normalised(keys[1 - view].detach())
            losses.append(_mean_log_odds(q @ gathered(k).t() / temperature, Relations(*between)))
        return 2 * temperature * (losses[0] + losses[1])


def _logits(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """(2n, W 2n): cosines of this rank's rows and all rows, by the temperature."""
    rows = torch.cat((normalised(first), normalised(second)))
    return rows @ gathered(rows).t() / temperature


def _mean_log_odds(logits: Tensor, relations: Relations, kept: Tensor | None = None) -> Tensor:
    """For each row (r,) the log of the denominator minus the weighted mean of its positives' logits (r, c).

    kept: (r, c), log of the share by which each term stands in the denominator; None: whole.
    """
    weights = relations.weights.to(logits.dtype)
    positive = (weights * logits).sum(dim=1) / weights.sum(dim=1)
    terms = (logits if kept is None else logits + kept).masked_fill(~relations.compared, -torch.inf)
    return log_sum(terms) - positive
