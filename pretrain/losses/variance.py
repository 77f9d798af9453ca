"""VICReg's variance term (Bardes et al. 2022, arXiv 2105.04906, eq. 1): no dimension may become the same for all."""

import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.pretrain.distributed.collectives import global_moments, rank_and_size

EPS = 1e-4


def variance_hinge(features: Tensor) -> Tensor:
    """mean_j max(0, 1 - sqrt(Var(z_j) + 1e-4)) over the rows of all ranks, z = sqrt(F) * features / |features|.

    The directions of the features are measured and not the features, whose scale is free: 1 is the deviation of each
    dimension where directions are spread evenly, as `feature_std` of the monitors is 1 / sqrt(F) there.

    Args:
        features: (n, F).

    Returns:
        The term, in float32 at least; the same on every rank.

    Raises:
        ValueError: all ranks together have one row.
    """
    with torch.autocast(features.device.type, enabled=False):
        wide = features.to(torch.promote_types(features.dtype, torch.float32))
        count = len(wide) * rank_and_size()[1]
        if count < 2:
            raise ValueError("a variance needs two rows or more over all ranks: enlarge the batch")
        _, biased, _ = global_moments(F.normalize(wide, dim=1) * wide.shape[1] ** 0.5)
        return F.relu(1 - (biased * count / (count - 1) + EPS).sqrt()).mean()
