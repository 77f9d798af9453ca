"""Supervised contrast of the voxels of a pair of appearances (Khosla et al. 2020, arXiv 2004.11362, eq. 2).

As anatomix does (Dey et al. 2025, arXiv 2411.02372): voxels of one label are alike, in both appearances, and differ
from those of all other labels. Everything compared lies within one pair, so that nothing is gathered over ranks: the
mean over pairs and ranks is that of the whole batch.

Row m of `first` and of `second`, (B, M, F) each, are embeddings of one voxel in the two appearances of a pair.
`labels` (B, M) are those of the voxels, and what is not in `counted` (B, M) bool is left out on all sides.
"""

import torch
from torch import Tensor

from scanfoundry.pretrain.losses.contrastive import normalised, wide


def label_contrast(first: Tensor, second: Tensor, labels: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """The loss of each pair (B,), mean over the voxels of both appearances; 0 where none is counted.

    Of each voxel: the mean of -log softmax of its positives among all others of the pair. Positives are all voxels of
    its label, and so always the same voxel in the other appearance.
    """
    with wide(first):
        rows = _directions(torch.cat((first, second), dim=1))
        logits = rows @ rows.mT / temperature
        labels, counted = labels.repeat(1, 2), counted.repeat(1, 2)
        others = ~torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device) & counted.unsqueeze(1)
        positive = others & (labels.unsqueeze(2) == labels.unsqueeze(1))
        # A row that is not counted may have no others: it takes all, so that its gradient is 0 and not NaN.
        log_sum = logits.masked_fill(~(others | ~counted.unsqueeze(2)), -torch.inf).logsumexp(dim=2)
        mean = (logits * positive).sum(dim=2) / positive.sum(dim=2).clamp(min=1)
        return ((log_sum - mean) * counted).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


@torch.no_grad()
def voxel_cosines(first: Tensor, second: Tensor, labels: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cosine over each pair's two appearances, of the same voxels and of voxels of other labels: (B,) both.

    NaN where a pair has none of them.
    """
    with wide(first):
        cosine = _directions(first) @ _directions(second).mT
        both = counted.unsqueeze(1) & counted.unsqueeze(2)
        same = torch.eye(cosine.shape[1], dtype=torch.bool, device=cosine.device) & both
        other = both & (labels.unsqueeze(2) != labels.unsqueeze(1))
        one, another = ((cosine * chosen).sum(dim=(1, 2)) / chosen.sum(dim=(1, 2)) for chosen in (same, other))
        return one, another


def _directions(x: Tensor) -> Tensor:
    """Vectors (B, M, F) at unit length."""
    return normalised(x.flatten(0, 1)).unflatten(0, x.shape[:2])
