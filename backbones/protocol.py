"""What every backbone offers to pre-training and fine-tuning: whatever varies with a backbone is asked of it here."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scanfoundry.backbones.layers.packed import PackedLayers, Walk
from scanfoundry.backbones.layers.patch_embedding import check_divides
from scanfoundry.backbones.layers.segmentation import UNet
from scanfoundry.backbones.layers.u_decoder import UDecoder
from scanfoundry.configs.base import Config
from scanfoundry.configs.geometry import Size3D

Family = Literal["convolutional", "transformer"]


class EncoderConfig(Config):
    """Base of the configurations of backbones: what is known of a backbone before its network exists.

    Each declares `name: Literal["..."] = "..."`, by which a configuration chooses it, and `in_channels: int = 1`.
    """

    family: ClassVar[Family]  # decides presets of optimisers
    not_of_weights: ClassVar[frozenset[str]] = frozenset()  # fields that only say how weights are trained
    if TYPE_CHECKING:  # each backbone declares these among its own fields, in its own order
        name: str
        in_channels: int

    @abstractmethod
    def build(self) -> "Encoder":
        """An encoder with fresh weights."""

    def differs_in(self, other: "EncoderConfig", free: Collection[str] = ()) -> str | None:
        """The first field, `name` before the others, that decides on the weights and is another in `other`.

        Args:
            other: a configuration, of the same backbone or not.
            free: fields that may differ.
        """
        mine, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        keys = sorted(mine.keys() | theirs.keys(), key=lambda key: (key != "name", key))
        fixed = [key for key in keys if key not in {*free, *self.not_of_weights}]
        return next((key for key in fixed if mine.get(key) != theirs.get(key)), None)


class Encoder(nn.Module, ABC):
    """A backbone that turns scans (B, C, D, H, W) into feature maps; 2D is depth 1, on the same weights."""

    config: EncoderConfig  # what makes this encoder again
    in_channels: int
    feature_channels: tuple[int, ...]  # finest level first
    pooled_dim: int

    @abstractmethod
    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """Voxels per feature voxel on each axis, from the input, finest level first."""

    @abstractmethod
    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps (B, F, d, h, w) of the scans (B, C, D, H, W), finest level first."""

    @abstractmethod
    def check_input(self, shape: Size3D) -> None:
        """Raise UserError, naming the size allowed, where scans of this (D, H, W) cannot be encoded."""

    def pooled(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """One vector (B, pooled_dim) for each scan (B, C, D, H, W): the `masked_mean` of the deepest features.

        Args:
            x: the scans.
            valid: (B, 1, D, H, W) bool, False on voxels that must not count (padding, defaced regions).
        """
        return masked_mean(self.forward(x)[-1], valid)

    def block_modules(self) -> Iterator[nn.Module]:
        """The blocks of the network from the input to the deepest level.

        They are what activation checkpointing computes twice, and what a decay of learning rates by layers counts.
        There are none where a backbone does not say; activation checkpointing is then refused. The method is not
        called `blocks`, which is the name of a transformer's weights.
        """
        return iter(())

    def decoder(self, num_classes: int) -> UNet | None:
        """A whole segmentation network on this encoder, with the decoder that belongs to it and fresh heads.

        It returns logits of several resolutions. An encoder of one level has no such decoder: None.
        """
        if len(self.feature_channels) == 1:
            return None
        return UDecoder(self, self.feature_channels, num_classes, deep_supervision=True)

    def feature_decoder(self) -> UNet | None:
        """The decoder of `decoder` alone, with fresh weights: its `decode` takes the encoder's feature maps.

        It holds none of the encoder's weights and no heads; its finest map has `feature_channels[0]` channels. None
        where the encoder has no such decoder.
        """
        network = self.decoder(1)
        return None if network is None else network.decoder_alone()

    def packed_levels(self, layers: PackedLayers) -> list[Walk] | None:
        """The levels of the network as walks on packed maps of visible blocks, each from the level before it.

        None where a backbone cannot be computed on visible blocks alone; objective 'spark' is then refused.
        """
        return None

    def size_divisor(self, is_2d: bool) -> Size3D:
        """Sizes (D, H, W) that are a multiple of this lose nothing at any level."""
        return self.feature_strides(is_2d)[-1]


class TokenEncoder(Encoder):
    """An encoder of patches that may leave patches out, which masked autoencoders need."""

    @property
    @abstractmethod
    def extra_tokens(self) -> int:
        """Tokens in front of the patches' in `forward_tokens`, such as a class token."""

    @abstractmethod
    def patch(self, is_2d: bool) -> Size3D:
        """The patch (D, H, W) in voxels."""

    def grid(self, shape: Size3D) -> Size3D:
        """Patches (d, h, w) of scans of (D, H, W).

        Raises:
            UserError: they do not fill it.
        """
        self.check_input(shape)
        d, h, w = (size // step for size, step in zip(shape, self.patch(shape[0] == 1), strict=True))
        return d, h, w

    def check_input(self, shape: Size3D) -> None:
        """Refuse sizes that are not a multiple of the patch."""
        check_divides(shape, self.patch(is_2d=shape[0] == 1))

    def feature_strides(self, is_2d: bool) -> tuple[Size3D, ...]:
        """The patch (D, H, W): there is one level."""
        return (self.patch(is_2d),)

    def grid_blocks(self, depth: int) -> "GridBlocks | None":
        """`depth` fresh blocks of the encoder's own kind and width, which a masked autoencoder decodes by.

        None where it brings a transformer of its own, as MAE does for a ViT.
        """
        return None

    @abstractmethod
    def forward_tokens(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Tokens (B, extra_tokens + n, F) of the scans (B, C, D, H, W).

        Args:
            x: the scans.
            keep: (B, n) int64 indices of the patches to encode, in d, h, w order (w fastest); None takes all.
        """

    @abstractmethod
    def patch_embeddings(self) -> Iterator[nn.Module]:
        """The modules that turn patches into tokens, which MoCo v3 may keep at their random weights."""


class GridBlocks(nn.Module, ABC):
    """Transformer blocks over all patches of a grid, with positions of their own."""

    @abstractmethod
    def forward(self, tokens: Tensor, grid: Size3D) -> Tensor:
        """Tokens (B, d*h*w, F), in d, h, w order (w fastest), of a grid (d, h, w) -> normalised tokens like them."""

    @abstractmethod
    def block_modules(self) -> Iterator[nn.Module]:
        """The blocks in the order in which they are computed."""


@runtime_checkable
class HasBlocks(Protocol):
    """A part of an objective whose blocks activation checkpointing may compute twice: an encoder, or a decoder."""

    def block_modules(self) -> Iterator[nn.Module]:
        """The blocks in the order in which they are computed."""


def masked_mean(features: Tensor, valid: Tensor | None) -> Tensor:
    """Mean over space (B, F) of features (B, F, d, h, w), each cell weighted by its share of valid voxels.

    Where all voxels of a scan are valid, or none is, this is its plain mean too. A grid that does not divide the scan
    is shared out evenly.

    Args:
        features: the feature maps.
        valid: (B, 1, D, H, W) bool at the scan's own size, or None for the plain mean.
    """
    if valid is None:
        return features.mean(dim=(2, 3, 4))
    wide = torch.promote_types(features.dtype, torch.float32)  # a share of 32^3 voxels needs more than bfloat16
    share = F.adaptive_avg_pool3d(valid.to(wide), (features.shape[2], features.shape[3], features.shape[4]))
    share = torch.where(share.flatten(1).any(dim=1).view(-1, 1, 1, 1, 1), share, 1.0)
    mean = (features.to(wide) * share).mean(dim=(2, 3, 4)) / share.mean(dim=(2, 3, 4))
    return mean.to(features.dtype)
