"""What every pre-training objective offers to the training loop."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from scanforge.backbones.protocol import Encoder, Triple
from scanforge.datasets.batch import Batch
from scanforge.pretrain.losses.reconstruction import patch_statistics, reconstruction_loss
from scanforge.pretrain.masking import block_mask, enlarge, patchify, unpatchify


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


class MaskedConfig(Protocol):
    """The keys that every masked objective's configuration has."""

    @property
    def mask_ratio(self) -> float: ...
    @property
    def normalise_target(self) -> bool: ...
    @property
    def target_eps(self) -> float: ...


class MaskedObjective(Objective):
    """Hide patches, predict their voxels from the rest: what MAE and SparK share; they differ in how they predict."""

    config: MaskedConfig

    @abstractmethod
    def patch(self, is_2d: bool) -> Triple:
        """The unit (D, H, W), in voxels, that is hidden or visible as a whole."""

    @abstractmethod
    def grid(self, shape: Triple) -> Triple:
        """Patches (d, h, w) of a crop (D, H, W)."""

    @abstractmethod
    def predict_patches(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """Predicted patches (B, L, V, C), target units, of scans (B, C, D, H, W), from what the mask leaves visible."""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss over the valid voxels of the hidden patches; see `reconstruction_loss`."""
        mask, patch = self.mask(batch), self.patch(batch.is_2d)
        loss = reconstruction_loss(
            self.predict_patches(batch.voxels, mask),
            patchify(batch.voxels, patch),
            mask.flatten(1),
            patchify(batch.valid, patch),
            self.config.normalise_target,
            self.config.target_eps,
        )
        return loss, {"reconstruction": loss.detach()}

    def mask(self, batch: Batch) -> Tensor:
        """The batch's masks (B, 1, d, h, w) on its device, True where a patch is hidden."""
        shape = (batch.voxels.shape[2], batch.voxels.shape[3], batch.voxels.shape[4])
        self.check_shape(shape)
        return block_mask(batch.seeds, self.grid(shape), self.config.mask_ratio).to(batch.voxels.device)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        """Pictures of the batch with the masks that training would use."""
        mask = self.mask(batch)
        prediction = self.predict_patches(batch.voxels, mask)
        options = (self.config.normalise_target, self.config.target_eps)
        return compose_reconstruction(batch, prediction, mask, self.patch(batch.is_2d), *options)


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
