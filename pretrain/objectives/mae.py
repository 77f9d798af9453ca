"""Masked autoencoders (He et al. 2022, arXiv 2111.06377): one configuration, an objective for each kind of network.

A transformer's hidden patches are dropped (`mae_tokens.py`). A convolutional network sees a scan with holes, and its
own U decoder fills them (`mae_unet.py`).
"""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from scanfoundry.backbones.protocol import Encoder, Family, TokenEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.pretrain.objectives.mae_tokens import TokenMAE
from scanfoundry.pretrain.objectives.mae_unet import UNetMAE
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
# What is left out: for U-Nets as Wald et al. 2024 (arXiv 2412.17041), for transformers as in MAE's paper.
DEFAULTS: dict[Family, dict[str, Any]] = {
    "convolutional": {"hide": "zeros", "block_2d": (16, 16), "block_3d": (16, 16, 16), "normalise_target": False},
    "transformer": {"normalise_target": True},
}
# width, depth, heads; the paper has one decoder for B, L and H, the small ones keep its 32 channels per head
DECODERS = {192: (192, 4, 6), 384: (256, 4, 8)}
PAPER_DECODER = (512, 8, 16)


class MAEConfig(ObjectiveOptions):
    """What is hidden, the decoder's size and the targets; None: by the backbone (`DEFAULTS`, `decoder_size`).

    An option that a backbone does not have is refused.
    """

    name: Literal["mae"] = "mae"
    mask_ratio: Share | tuple[Share, Share] = 0.75  # two numbers: drawn between them for each crop (U-Nets)
    block_2d: tuple[Positive, Positive] | None = None  # (H, W), hidden as a whole; a transformer's is its patch
    block_3d: tuple[Positive, Positive, Positive] | None = None  # (D, H, W)
    hide: Literal["zeros", "token"] | None = None  # by zeros, or a learned value for each channel (U-Nets)
    decoder_depth: Positive | None = None  # of a transformer's; Primus decodes by two of its own blocks
    decoder_dim: Positive | None = None  # of a ViT's
    decoder_heads: Positive | None = None
    normalise_target: bool | None = None  # per block
    reconstruct: Literal["augmented", "clean"] = "augmented"  # clean: the crop before its intensities were changed
    target_eps: Annotated[float, Field(ge=0)] = 1e-6  # floors a flat block's std at its root; raise for noisy air
    gradient_weight: Annotated[float, Field(ge=0)] = 0.0  # of the gradient map's loss (transformers); 0: none

    @model_validator(mode="after")
    def _ratios_rise(self) -> "MAEConfig":
        if isinstance(self.mask_ratio, tuple) and self.mask_ratio[0] >= self.mask_ratio[1]:
            raise ValueError(f"mask_ratio {list(self.mask_ratio)} must rise: set the smaller share first")
        return self

    def filled(self, family: Family) -> Self:
        """With the family's `DEFAULTS` where there was nothing."""
        return self.model_copy(
            update={key: value for key, value in DEFAULTS[family].items() if getattr(self, key) is None}
        )

    def build(self, encoder: Encoder) -> Objective:
        """The objective on an encoder.

        Raises:
            UserError: they do not go together.
        """
        if isinstance(encoder, TokenEncoder):
            self._check_tokens(encoder)
            return TokenMAE(self.filled("transformer"), encoder)
        decoder = encoder.feature_decoder()
        if decoder is None or max(encoder.feature_strides(is_2d=False)[0]) > 1:
            raise UserError(
                f"objective 'mae' needs tokens ('vit', 'primus') or a U-Net at full resolution ('stunet', 'mednext', "
                f"'resenc'), and backbone '{encoder.config.name}' is neither; take 'contrastive' or 'barlow_twins'"
            )
        self._check_unet(encoder.config.name)
        return UNetMAE(self.filled("convolutional"), encoder, decoder)

    def block(self, is_2d: bool) -> Size3D | None:
        """The block (D, H, W) in voxels; None where it is the backbone's to say."""
        if is_2d:
            return None if self.block_2d is None else (1, *self.block_2d)
        return self.block_3d

    def decoder_size(self, encoder_dim: int) -> tuple[int, int, int]:
        """Width, depth and heads of a ViT's decoder.

        Raises:
            UserError: the heads do not divide the width.
        """
        chosen = (self.decoder_dim, self.decoder_depth, self.decoder_heads)
        defaults = DECODERS.get(encoder_dim, PAPER_DECODER)
        dim, depth, heads = (given or default for given, default in zip(chosen, defaults, strict=True))
        if dim % heads:
            raise UserError(f"decoder_dim {dim} is not a multiple of decoder_heads {heads}; change one of them")
        return dim, depth, heads

    def _check_tokens(self, encoder: TokenEncoder) -> None:
        name = encoder.config.name
        if isinstance(self.mask_ratio, tuple):
            raise UserError(
                f"objective.mask_ratio {list(self.mask_ratio)}: '{name}' takes as many patches of every crop; give one "
                "number, or take a convolutional backbone"
            )
        for key in ("decoder_dim", "decoder_heads"):
            if getattr(self, key) is not None and type(encoder).grid_blocks is not TokenEncoder.grid_blocks:
                raise UserError(f"objective.{key}: '{name}' decodes by blocks of its own width and heads; remove it")
        if self.hide is not None:
            raise UserError(f"objective.hide is for convolutional backbones: '{name}' drops what is hidden; remove it")
        for is_2d, key in ((True, "block_2d"), (False, "block_3d")):
            block, patch = self.block(is_2d), encoder.patch(is_2d)
            if block not in (None, patch):
                axes = slice(1, None) if is_2d else slice(None)
                raise UserError(
                    f"objective.{key} is {block[axes] if block else None} and what '{name}' hides is its patch "
                    f"{patch[axes]}; remove it, or change the patch of the backbone"
                )

    def _check_unet(self, name: str) -> None:
        for key in ("decoder_dim", "decoder_depth", "decoder_heads", "gradient_weight"):
            if getattr(self, key):
                raise UserError(f"objective.{key} is for transformers: '{name}' has a decoder of its own; remove it")
        for key, block in (("block_2d", self.block_2d), ("block_3d", self.block_3d)):
            if self.normalise_target and block is not None and max(block) == 1:
                raise UserError(
                    f"objective.normalise_target makes every block of one voxel ({key}) the same; set it to false"
                )
