"""Contrastive losses over the pairs of all ranks: NT-Xent, DCL, DCLW and MoCo v3's.

NT-Xent is SimCLR's (Chen et al. 2020, arXiv 2002.05709, eq. 1), DCL and DCLW are of Yeh et al. 2022 (arXiv
2110.06848, eq. 6 and 7), the last one is of Chen et al. 2021 (arXiv 2104.02057, algorithm 1).

Row i of `first` and row i of `second`, (n, F) each, are embeddings of two views of one thing; n is the same on
every rank. Every loss normalises them, counts in float32 at least, and returns one number for each pair (n,) that
covers both directions: the run's loss is their mean over pairs and ranks. `same` (n,) or (n, k) int64: pairs that
share an id, on any rank, are not negatives of each other (crops of one scan, scans of one patient). A batch of one
pair over all ranks is a ValueError.
"""

import torch
from torch import Tensor

from scanfoundry.pretrain.distributed.collectives import gathered, rank_and_size

TINY = 1e-12


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.1, same: Tensor | None = None) -> Tensor:
    """Normalised temperature-scaled cross-entropy of each pair (n,): the positive against all other 2nW - 2 rows."""
    with wide(first):
        positive, negatives = _both_directions(first, second, temperature, same)
        return over_directions(_cross_entropy(positive, negatives))


def dcl(first: Tensor, second: Tensor, temperature: float = 0.1, same: Tensor | None = None) -> Tensor:
    """Decoupled contrastive loss of each pair (n,): NT-Xent without the positive in the denominator."""
    with wide(first):
        positive, negatives = _both_directions(first, second, temperature, same)
        return over_directions(log_sum(negatives) - positive)


def dclw(
    first: Tensor, second: Tensor, temperature: float = 0.1, sigma: float = 0.5, same: Tensor | None = None
) -> Tensor:
    """DCL of each pair (n,) with the positive weighted by `pair_weights`: pairs far apart pull more."""
    with wide(first):
        positive, negatives = _both_directions(first, second, temperature, same)
        weight = pair_weights(first, second, sigma).repeat(2)
        return over_directions(log_sum(negatives) - weight * positive)


def moco_v3(
    queries: tuple[Tensor, Tensor],
    keys: tuple[Tensor, Tensor],
    temperature: float = 0.2,
    same: Tensor | None = None,
) -> Tensor:
    """MoCo v3's symmetric loss of each pair (n,): q1 finds k2 among the keys of all ranks, q2 finds k1; times 2 T.

    Args:
        queries: (n, F) each, of the first and the second view.
        keys: the momentum encoder's, no gradient reaches them.
    """
    with wide(queries[0]):
        negative = _different(len(queries[0]), same, queries[0].device)  # (n, W n)
        losses = []
        for query, key in zip(queries, reversed(keys), strict=True):
            q, k = normalised(query), normalised(key.detach())
            positive = (q * k).sum(dim=1) / temperature
            logits = (q @ gathered(k).t() / temperature).masked_fill(~negative, -torch.inf)
            losses.append(_cross_entropy(positive, logits))
        return 2 * temperature * (losses[0] + losses[1])


@torch.no_grad()
def pair_weights(first: Tensor, second: Tensor, sigma: float) -> Tensor:
    """DCLW's weight of each pair (n,): 2 - exp(cos / sigma) / its mean over all ranks; the mean weight is 1."""
    own = alignment(first, second) / sigma
    everyone = gathered(own)
    return 2 - len(everyone) * (own - everyone.logsumexp(dim=0)).exp()


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Cosine of each pair (n,)."""
    return (normalised(first) * normalised(second)).sum(dim=1)


def normalised(x: Tensor) -> Tensor:
    """Rows (n, F) at unit length, in float32 at least; a row of zeros has no direction: it stays, without gradient."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    return torch.where(norm <= TINY, 0.0, x / norm.clamp_min(TINY))  # NaN stays NaN


def wide(x: Tensor) -> torch.autocast:
    """The context in which a loss is computed: no autocast to half precision."""
    return torch.autocast(x.device.type, enabled=False)


def _both_directions(first: Tensor, second: Tensor, temperature: float, same: Tensor | None) -> tuple[Tensor, Tensor]:
    """Logits of the 2n rows: with their positives (2n,), and with all rows (2n, 2nW), -inf where not a negative."""
    if first.shape != second.shape:
        raise ValueError(f"pairs need as many rows on both sides, got {tuple(first.shape)} and {tuple(second.shape)}")
    n, rows = len(first), torch.cat((normalised(first), normalised(second)))
    positive = (rows[:n] * rows[n:]).sum(dim=1).repeat(2) / temperature
    logits = rows @ gathered(rows).t() / temperature
    return positive, logits.masked_fill(~negative_rows(n, same, first.device), -torch.inf)


def negative_rows(n: int, same: Tensor | None, device: torch.device) -> Tensor:
    """(2n, W 2n) bool: which rows of all ranks, each rank's n first and then its n second, are negatives of ours."""
    negative = _different(n, same, device).unflatten(1, (-1, n))  # (n, W, n), of pairs
    return negative.unsqueeze(2).expand(-1, -1, 2, -1).flatten(1).repeat(2, 1)


def _different(n: int, same: Tensor | None, device: torch.device) -> Tensor:
    """(n, W n) bool: which pairs of all ranks are negatives of this rank's; a pair is never one of itself."""
    rank, size = rank_and_size()
    if n * size < 2:
        raise ValueError("a contrastive loss needs two pairs or more over all ranks: enlarge the batch")
    everyone = torch.arange(n * size, device=device)
    different = everyone[rank * n : (rank + 1) * n, None] != everyone
    if same is not None:
        same = same.view(n, -1)
        shared = same[:, None, :, None] == gathered(same)[None, :, None, :]  # (n, W n, k, k)
        different &= ~shared.flatten(2).any(dim=2)
    return different


def _cross_entropy(positive: Tensor, negatives: Tensor) -> Tensor:
    """-log softmax of the positive (r,) among itself and the negatives (r, c): (r,)."""
    return torch.cat((positive.unsqueeze(1), negatives), dim=1).logsumexp(dim=1) - positive


def log_sum(negatives: Tensor) -> Tensor:
    """logsumexp of each row of logits; 0, without gradient, where a row has no negative."""
    none = torch.isneginf(negatives).all(dim=1)
    return torch.where(none, 0.0, negatives.masked_fill(none.unsqueeze(1), 0.0).logsumexp(dim=1))


def over_directions(losses: Tensor) -> Tensor:
    """Mean over the two directions: (2n,) -> (n,)."""
    return losses.unflatten(0, (2, -1)).mean(dim=0)
