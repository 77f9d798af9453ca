"""Self-distillation of tokens: from the visible patches the student predicts what a teacher makes of the hidden ones.

The teacher is a moving average of the student and sees the whole crop. Its targets are those of data2vec (Baevski et
al. 2022, arXiv 2202.03555): the outputs of the top blocks, each normalised, averaged. The student encodes the visible
patches alone, and a light decoder predicts, as in data2vec 2.0 (arXiv 2212.07525). SMIT (Jiang et al. 2022, arXiv
2205.10342) found self-distillation of tokens best for scans; it softens tokens and centres them, which this needs not.
"""

from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from scanfoundry.backbones.distillation import outputs_of
from scanfoundry.backbones.protocol import Encoder, TokenEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.ema import Follower, cosine_momentum
from scanfoundry.pretrain.losses.features import weighted_mean
from scanfoundry.pretrain.masking import block_mask, enlarge, patchify, visible_indices
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.masked import check_two_patches, hidden_indices, size_of, take
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions
from scanfoundry.pretrain.objectives.token_decoder import TokenDecoder

Positive = Annotated[int, Field(gt=0)]


class TokenDistillationConfig(ObjectiveOptions):
    """Share of the patches hidden, the decoder's size (None: as MAE's, by the encoder's), and the targets."""

    name: Literal["token_distillation"] = "token_distillation"
    mask_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.75
    decoder_dim: Positive | None = None
    decoder_depth: Positive | None = None
    decoder_heads: Positive | None = None
    top_blocks: Positive = 6  # of the teacher, whose outputs are averaged (data2vec: 6 of a ViT-B)
    beta: Annotated[float, Field(gt=0)] = 2.0  # distances below are squared, as data2vec's of images
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.996  # of the teacher at the start; it rises to 1 over the run

    def build(self, encoder: Encoder) -> "TokenDistillation":
        """The objective on an encoder.

        Raises:
            UserError: they do not go together.
        """
        if not isinstance(encoder, TokenEncoder):
            raise UserError(
                "objective 'token_distillation' needs the tokens of backbone 'vit' or 'primus'; for a convolutional "
                "one take 'spark', or 'distil' with a teacher"
            )
        blocks = sum(1 for _ in encoder.block_modules())
        if blocks < self.top_blocks:
            raise UserError(f"objective.top_blocks={self.top_blocks}, but the encoder has {blocks} blocks; lower it")
        return TokenDistillation(self, encoder)


class TokenDistillation(Objective):
    """Tokens of the hidden patches, predicted from the visible ones."""

    encoder: TokenEncoder

    def __init__(self, config: TokenDistillationConfig, encoder: TokenEncoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        decoder = MAEConfig(
            decoder_dim=config.decoder_dim, decoder_depth=config.decoder_depth, decoder_heads=config.decoder_heads
        )
        dim = encoder.pooled_dim
        self.decoder = TokenDecoder(dim, decoder.decoder_size(dim), (dim, dim))
        self.follower = Follower(encoder=encoder)

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Smooth L1 at the hidden patches, each by its share of valid voxels, in the batch of all ranks.

        Metrics: `token_distance` (B,), and `target_std`, the deviation of the targets over the tokens of the batch,
        mean over their features: it falls to 0 in a collapse.
        """
        batch = views[0]
        mask = self.mask(batch)
        hidden = to_device(hidden_indices(mask), batch.voxels.device)
        wanted = self.targets(batch.voxels)
        given = self.predict(batch.voxels, mask, hidden).to(wanted.dtype)
        distances = self.distance(given, take(wanted, hidden))
        patch = self.encoder.patch(batch.is_2d)
        share = take(patchify(batch.valid, patch), hidden).to(distances.dtype).mean(dim=(2, 3))
        loss, of_each = weighted_mean(distances, share)
        return loss, {"token_distance": of_each, "target_std": wanted.flatten(0, 1).std(0).mean()}

    def distance(self, given: Tensor, wanted: Tensor) -> Tensor:
        """Smooth L1 of tokens (B, n, F), mean over their features: (B, n)."""
        return F.smooth_l1_loss(given, wanted, beta=self.config.beta, reduction="none").mean(-1)

    def mask(self, batch: Batch) -> Tensor:
        """The batch's masks (B, 1, d, h, w) on the host, True where a patch is hidden."""
        shape = size_of(batch)
        self.check_shape(shape)
        return block_mask(batch.seeds, self.encoder.grid(shape), self.config.mask_ratio)

    def predict(self, voxels: Tensor, mask: Tensor, wanted: Tensor | None = None) -> Tensor:
        """Tokens (B, n, F) of the patches `wanted` (B, n), or of all, from those that the mask leaves visible."""
        keep = to_device(visible_indices(mask), voxels.device)
        encoded = self.encoder.forward_tokens(voxels.to(self.decoder.mask_token.dtype), keep)
        grid = (mask.shape[2], mask.shape[3], mask.shape[4])
        predicted: Tensor = self.decoder(encoded, keep, grid, voxels.shape[2] == 1, wanted)
        return predicted

    @torch.no_grad()
    def targets(self, voxels: Tensor) -> Tensor:
        """What the teacher makes of every patch (B, L, F), float32 at least: normalised outputs of its top blocks."""
        teacher = cast(TokenEncoder, self.follower.get_submodule("encoder"))
        blocks = list(teacher.block_modules())[-self.config.top_blocks :]
        with outputs_of(blocks) as outputs:
            teacher.forward_tokens(voxels.to(self.decoder.mask_token.dtype))
        total: Tensor | None = None
        for output in outputs:
            tokens = output[:, teacher.extra_tokens :]
            wide = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
            normal = F.layer_norm(wide, wide.shape[-1:])
            total = normal if total is None else total + normal
        assert total is not None
        return total / len(blocks)

    def after_step(self, progress: float) -> None:
        """The teacher follows, ever more slowly."""
        self.follower.follow(cosine_momentum(self.config.momentum, progress), encoder=self.encoder)

    @torch.no_grad()
    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The scan, its visible part, and how far each patch's token is from the teacher's."""
        batch = views[0]
        mask, voxels = self.mask(batch), batch.voxels
        wanted = self.targets(voxels)
        far = self.distance(self.predict(voxels, mask).to(wanted.dtype), wanted).view(mask.shape)
        patch = self.encoder.patch(batch.is_2d)
        dark = voxels.amin((1, 2, 3, 4), keepdim=True)
        visible = torch.where(enlarge(to_device(mask, voxels.device), patch), dark, voxels)
        return {"scan": voxels, "scan: visible": visible,
                "distance": enlarge(far.to(voxels.dtype), patch).expand_as(voxels)}  # fmt: skip

    def check_shape(self, shape: Size3D) -> None:
        """Crops (D, H, W) must hold at least two whole patches."""
        check_two_patches(self.encoder, shape)
