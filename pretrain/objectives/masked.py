"""What masked objectives share: hide patches, predict their voxels from the rest."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder, TokenEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.losses.reconstruction import patch_statistics, reconstruction_loss
from scanfoundry.pretrain.masking import block_mask, enlarge, patchify, unpatchify, visible_indices
from scanfoundry.pretrain.objectives.protocol import Objective


@dataclass(frozen=True)
class Reconstruction:
    """Pictures of a masked objective in the units of the batch's voxels, each (B, C, D, H, W).

    target      what is to be predicted: the scan, or what it was before its intensities were changed
    visible     the scan with zeros on the hidden voxels
    prediction  the model's picture on the hidden voxels, the target on the visible ones
    mask        bool, True on hidden voxels, the same in every channel
    """

    target: Tensor
    visible: Tensor
    prediction: Tensor
    mask: Tensor


class MaskedConfig(Protocol):
    """The keys that every masked objective's configuration has."""

    @property
    def mask_ratio(self) -> float | tuple[float, float]: ...
    @property
    def normalise_target(self) -> bool | None: ...
    @property
    def target_eps(self) -> float: ...
    @property
    def reconstruct(self) -> Literal["augmented", "clean"]: ...


class MaskedObjective(Objective):
    """MAE and SparK differ in how they predict; of several views they use the first."""

    config: MaskedConfig

    def __init__(self, config: MaskedConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.clean = config.reconstruct == "clean"

    @abstractmethod
    def patch(self, is_2d: bool) -> Size3D:
        """The unit (D, H, W), in voxels, that is hidden or visible as a whole."""

    @abstractmethod
    def grid(self, shape: Size3D) -> Size3D:
        """Patches (d, h, w) of a crop (D, H, W)."""

    @abstractmethod
    def predict_patches(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """Predicted patches (B, L, V, C), target units, of scans (B, C, D, H, W), from what the mask leaves visible.

        The mask (B, 1, d, h, w) lies on the host, as `mask` makes it.
        """

    def predict_hidden(self, voxels: Tensor, mask: Tensor, hidden: Tensor) -> Tensor:
        """Those of `predict_patches` that the mask hides, (B, n, V, C); hidden (B, n) is `hidden_indices(mask)` on
        the device."""
        return take(self.predict_patches(voxels, mask), hidden)

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss over the valid voxels of the hidden patches; metric `reconstruction` (B,)."""
        batch = views[0]
        mask = self.mask(batch)
        hidden = to_device(hidden_indices(mask), batch.voxels.device)
        prediction = self.predict_hidden(batch.voxels, mask, hidden)
        loss, of_each = self.score(prediction, self.wanted(batch), batch.valid, hidden)
        return loss, {"reconstruction": of_each.detach()}

    def wanted(self, batch: Batch) -> Tensor:
        """The scans (B, C, D, H, W) that are to be predicted."""
        if not self.clean:
            return batch.voxels
        assert batch.clean is not None, "a view without its clean voxels"
        return batch.clean

    def score(self, prediction: Tensor, image: Tensor, valid: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """`reconstruction_loss` of predicted hidden patches (B, n, V, C) against an image (B, C, D, H, W)."""
        patch = self.patch(image.shape[2] == 1)
        target, known = (take(patchify(x, patch), hidden) for x in (image, valid))
        everywhere = torch.ones_like(hidden, dtype=torch.bool)
        return reconstruction_loss(
            prediction, target, everywhere, known, bool(self.config.normalise_target), self.config.target_eps
        )

    def mask(self, batch: Batch) -> Tensor:
        """The batch's masks (B, 1, d, h, w) on the host, True where a patch is hidden."""
        self.check_shape(size_of(batch))
        return block_mask(batch.seeds, self.grid(size_of(batch)), self.config.mask_ratio)

    @torch.no_grad()
    def reconstruct(self, batch: Batch) -> Reconstruction:
        """Pictures of the batch with the masks that training would use."""
        mask = self.mask(batch)
        prediction = self.predict_patches(batch.voxels, mask)
        return self.compose(prediction, self.wanted(batch), batch.valid, mask, batch.voxels)

    def compose(self, prediction: Tensor, image: Tensor, valid: Tensor, mask: Tensor, seen: Tensor) -> Reconstruction:
        """Pictures from predicted patches (B, L, V, C) and a mask of patches (B, 1, d, h, w), True where hidden.

        `image` is what they should be, `seen` what they were predicted from.

        Normalised predictions take the mean and deviation of the true patch, as in MAE's own pictures.
        """
        patch = self.patch(image.shape[2] == 1)
        prediction = prediction.to(image.dtype)
        if self.config.normalise_target:
            mean, std = patch_statistics(patchify(image, patch), patchify(valid, patch), self.config.target_eps)
            prediction = prediction * std + mean
        grid = (mask.shape[2], mask.shape[3], mask.shape[4])
        hidden = enlarge(to_device(mask, image.device), patch).expand_as(image)
        picture = torch.where(hidden, unpatchify(prediction, grid, patch), image)
        return Reconstruction(image, seen.masked_fill(hidden, 0), picture, hidden)

    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The scan, the same with grey on what is hidden, and its reconstruction."""
        return columns("scan", self.reconstruct(views[0]))


def size_of(batch: Batch) -> Size3D:
    """(D, H, W) of the batch's crops."""
    d, h, w = batch.voxels.shape[2:]
    return d, h, w


def check_two_patches(encoder: TokenEncoder, shape: Size3D) -> None:
    """Raise UserError where a crop of (D, H, W) does not hold two whole patches at least."""
    d, h, w = encoder.grid(shape)
    if d * h * w < 2:
        raise UserError(f"a crop of (D, H, W) = {shape} is one patch: nothing would stay visible; enlarge the crop")


def columns(name: str, pictures: Reconstruction) -> dict[str, Tensor]:
    """A reconstruction as columns of pictures; hidden voxels are halfway between the scan's darkest and brightest."""
    grey = (pictures.target.amin((1, 2, 3, 4), keepdim=True) + pictures.target.amax((1, 2, 3, 4), keepdim=True)) / 2
    return {
        name: pictures.target,
        f"{name}: visible": torch.where(pictures.mask, grey, pictures.visible),
        f"{name}: reconstruction": pictures.prediction,
    }


def hidden_indices(mask: Tensor) -> Tensor:
    """Indices (B, n) int64, ascending, of the hidden blocks of masks (B, 1, d, h, w) with n hidden in each."""
    return visible_indices(~mask)


def take(patches: Tensor, chosen: Tensor) -> Tensor:
    """The patches `chosen` (B, n) int64 of (B, L, ...): (B, n, ...)."""
    places = chosen.view(*chosen.shape, *(1,) * (patches.dim() - 2))
    return patches.gather(1, places.expand(*chosen.shape, *patches.shape[2:]))
