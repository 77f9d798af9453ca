"""Masked objectives that hide blocks of a configured size and predict the whole scan: `spark`, and `mae` on U-Nets."""

from abc import abstractmethod
from typing import Protocol

from torch import Tensor

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.masking import patchify
from scanfoundry.pretrain.objectives.masked import MaskedConfig, MaskedObjective


class BlockConfig(MaskedConfig, Protocol):
    """What a configuration says of the blocks."""

    def block(self, is_2d: bool) -> Size3D | None:
        """The block (D, H, W) in voxels; None where it was not filled in."""


class BlockObjective(MaskedObjective):
    """The unit that is hidden is the configured block; the network gives the voxels of the scan."""

    config: BlockConfig

    @abstractmethod
    def predict(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """Predicted voxels (B, C, D, H, W), target units, from what the mask (on the host) leaves visible."""

    def predict_patches(self, voxels: Tensor, mask: Tensor) -> Tensor:
        """`predict`, cut into blocks."""
        return patchify(self.predict(voxels, mask), self.patch(voxels.shape[2] == 1))

    def patch(self, is_2d: bool) -> Size3D:
        """The configured block."""
        block = self.config.block(is_2d)
        assert block is not None  # filled in
        return block

    def grid(self, shape: Size3D) -> Size3D:
        """Blocks (d, h, w) of a crop (D, H, W)."""
        d, h, w = (size // b for size, b in zip(shape, self.patch(shape[0] == 1), strict=True))
        return d, h, w

    def check_whole_blocks(self, shape: Size3D) -> None:
        """Raise UserError where a crop of (D, H, W) does not divide into blocks."""
        block = self.patch(shape[0] == 1)
        if any(size % b for size, b in zip(shape, block, strict=True)):
            raise UserError(
                f"a crop of (D, H, W) = {shape} does not divide into blocks of {block}: "
                f"allowed is every multiple of {block}; change the crop or the block"
            )
