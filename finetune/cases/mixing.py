"""Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899) of a batch of scans.

Each scan of a batch is mixed with another one, and so are their classes. MAE fine-tunes a ViT with mixup 0.8 and cutmix
1.0, the parameters of the Beta distribution that the share is drawn from; of both one is drawn for each batch.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from scanfoundry.finetune.config.study import AugmentationConfig


def mixed(
    images: Tensor, labels: Tensor, n_classes: int, rng: np.random.Generator, config: AugmentationConfig
) -> tuple[Tensor, Tensor]:
    """Images and classes of a batch, each mixed with those of another place; a pure function of `rng`.

    Args:
        images: (B, C, D, H, W).
        labels: (B,) indices of the classes.
        n_classes: how many there are.
        rng: draws the partners, the kind of mixing and its share: one of each for the whole batch.
        config: with `mixup` or `cutmix` above 0.

    Returns:
        The images, and the share of each class (B, n_classes).
    """
    partners = torch.from_numpy(rng.permutation(len(images)))
    cut = rng.random() < 0.5 if config.mixup and config.cutmix else config.cutmix > 0
    alpha = config.cutmix if cut else config.mixup
    share = float(rng.beta(alpha, alpha))
    if cut:
        box = random_box(images.shape[2:], share, rng)
        mask = torch.zeros(images.shape[2:], dtype=torch.bool)
        mask[box] = True
        share = 1 - mask.double().mean().item()
        images = torch.where(mask, images[partners], images)
    else:
        images = share * images + (1 - share) * images[partners]
    truth = F.one_hot(labels, n_classes).float()
    return images, share * truth + (1 - share) * truth[partners]


def random_box(shape: Sequence[int], share: float, rng: np.random.Generator) -> tuple[slice, ...]:
    """A box of 1 - `share` of the voxels of (D, H, W), its middle anywhere; what reaches outside is cut off.

    Its sides are the same part of each axis; the axis of one slice is whole.
    """
    axes = sum(size > 1 for size in shape)
    part = (1 - share) ** (1 / max(axes, 1))
    box = []
    for size in shape:
        length, middle = part * size, rng.random() * size
        low, high = round(max(0.0, middle - length / 2)), round(min(float(size), middle + length / 2))
        box.append(slice(low, high) if size > 1 else slice(0, 1))
    return tuple(box)
