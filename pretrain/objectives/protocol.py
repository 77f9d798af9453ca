"""What every pre-training objective offers to the training loop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from scanforge.backbones.protocol import Encoder, Triple
from scanforge.datasets.batch import Batch
from scanforge.pretrain.losses.reconstruction import patch_statistics
from scanforge.pretrain.masking import enlarge, patchify, unpatchify


@dataclass(frozen=True)
class Reconstruction:
    """Pictures of a masked objective in the units of the batch's voxels, each (B, C, D, H, W).

    target      the scan
    visible     the scan with zeros on the hidden voxels
    prediction  the model's picture on the hidden voxels, the scan on the visible ones
    mask        bool, True on hidden voxels, the same in every channel
    """

    target: Tensor
    visible: Tensor
    prediction: Tensor
    mask: Tensor


class Objective(nn.Module, ABC):
    """`loss, metrics = objective(batch)`; the encoder is what a release keeps."""

    encoder: Encoder

    @abstractmethod
    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss, and detached scalars to be logged."""

    @abstractmethod
    def reconstruct(self, batch: Batch) -> Reconstruction:
        """What the model makes of the hidden parts, in image space, with the masks that training would use."""

    @abstractmethod
    def check_shape(self, shape: Triple) -> None:
        """Raise UserError, naming what is allowed, where crops of (D, H, W) cannot be trained on."""


def compose_reconstruction(
    batch: Batch, prediction: Tensor, mask: Tensor, patch: Triple, normalise: bool, eps: float
) -> Reconstruction:
    """Pictures from predicted patches (B, L, V, C) and a mask of patches (B, 1, d, h, w), True where hidden.

    Normalised predictions take the mean and deviation of the true patch, as in MAE's own pictures.
    """
    target = batch.voxels
    prediction = prediction.to(target.dtype)
    if normalise:
        mean, std = patch_statistics(patchify(target, patch), patchify(batch.valid, patch), eps)
        prediction = prediction * std + mean
    grid = (mask.shape[2], mask.shape[3], mask.shape[4])
    hidden = enlarge(mask, patch).expand_as(target)
    picture = torch.where(hidden, unpatchify(prediction, grid, patch), target)
    return Reconstruction(target, target.masked_fill(hidden, 0), picture, hidden)
