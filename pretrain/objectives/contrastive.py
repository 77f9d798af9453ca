"""Contrastive pre-training on two views: SimCLR (Chen et al. 2020, arXiv 2002.05709), DCL and DCLW (Yeh et al.
2022, arXiv 2110.06848) on SimCLR's network, MoCo v3 (Chen et al. 2021, arXiv 2104.02057)."""

import hashlib
from typing import Annotated, Any, Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder, TokenEncoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.ema import Follower, cosine_momentum
from scanfoundry.pretrain.losses.contrastive import alignment, dcl, dclw, moco_v3, nt_xent
from scanfoundry.pretrain.losses.positional import Relations, soft_dcl, soft_moco_v3, soft_nt_xent
from scanfoundry.pretrain.losses.variance import variance_hinge
from scanfoundry.pretrain.objectives.positions import PositionsConfig
from scanfoundry.pretrain.objectives.projector import check_pair_count, mlp, pooled, same_shape
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions

Positive = Annotated[int, Field(gt=0)]
Inputs = tuple[Tensor, Tensor]  # voxels (B, C, D, H, W) and which are valid
Related = Tensor | Relations  # of pairs: their scans' ids, as `same` in the losses, or what positions make of them
# Where a loss's paper departs from the defaults below, which are SimCLR's; a predictor is as wide as the projector.
PAPERS: dict[str, dict[str, float]] = {
    "dclw": {"sigma": 0.5},
    "moco_v3": {
        "temperature": 0.2,
        "projector_hidden": 4096,
        "projector_dim": 256,
        "projector_layers": 3,
        "momentum": 0.99,
    },
}


class ContrastiveConfig(ObjectiveOptions):
    """Which loss, and its settings: those of its paper where they are absent. What a loss does not use is refused."""

    name: Literal["contrastive"] = "contrastive"
    loss: Literal["nt_xent", "dcl", "dclw", "moco_v3"] = "nt_xent"
    temperature: Annotated[float, Field(gt=0)] = 0.1
    sigma: Annotated[float, Field(gt=0)] | None = None  # dclw: spread of the weights
    projector_hidden: Positive = 2048
    projector_dim: Positive = 128
    projector_layers: Annotated[int, Field(ge=2)] = 2
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None  # moco_v3: at the start; it rises to 1 over the run
    variance_weight: Annotated[float, Field(ge=0)] = 0.0  # of VICReg's variance term on the encoder's features; 0: none
    positions: PositionsConfig | None = None  # crops at one place of different scans attract each other, too
    freeze_patch_embedding: bool = False  # a ViT's stays random, which steadies the training (MoCo v3, section 4)

    @model_validator(mode="before")
    @classmethod
    def _as_in_the_paper(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return PAPERS.get(str(given.get("loss")), {}) | {
            key: value for key, value in given.items() if value is not None
        }

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "ContrastiveConfig":
        for option, loss in (("sigma", "dclw"), ("momentum", "moco_v3")):
            if getattr(self, option) is not None and self.loss != loss:
                raise ValueError(f"{option} is for loss '{loss}' alone; remove it, or choose that loss")
        if self.positions is not None and self.loss == "dclw":
            raise ValueError("positions are for the losses 'nt_xent', 'dcl', 'moco_v3'; remove them, or choose one")
        return self

    @property
    def compares_samples(self) -> bool:
        """It does: with the other samples of a micro-batch, on all ranks."""
        return True

    def build(self, encoder: Encoder) -> "Contrastive":
        """The objective on an encoder.

        Raises:
            UserError: they do not go together.
        """
        if self.freeze_patch_embedding and not isinstance(encoder, TokenEncoder):
            raise UserError("objective.freeze_patch_embedding is for transformers ('vit', 'primus'); remove it")
        return (MomentumContrastive if self.loss == "moco_v3" else Contrastive)(self, encoder)


class Contrastive(Objective):
    """Two views through encoder and projector; each pair against all others of the batch of all ranks."""

    views = 2

    def __init__(self, config: ContrastiveConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.needs_depth = config.positions is not None and config.positions.depth_alone
        sizes = (encoder.pooled_dim, config.projector_hidden, config.projector_dim, config.projector_layers)
        self.projector = mlp(*sizes, last_norm=True)
        if config.freeze_patch_embedding and isinstance(encoder, TokenEncoder):
            for embedding in encoder.patch_embeddings():
                embedding.requires_grad_(False)

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss; metrics for each sample: `alignment`, the cosine of its pair, and its loss by the loss's name.

        With `positions` also `soft_positives`, the sum of the weights of rows of other pairs.
        """
        first, second = views
        check_pair_count(views)
        inputs = self._inputs(first, second)
        features = pooled(self.encoder, inputs)
        same, positions = same_scans(first, second), self.config.positions
        related = same if positions is None else positions.relations(first, second, same)
        losses, cosine = self.compare(features, inputs, related)
        metrics = {"alignment": cosine.detach(), self.config.loss: losses.detach()}
        if isinstance(related, Relations):
            metrics["soft_positives"] = related.soft
        if not self.config.variance_weight:
            return losses.mean(), metrics
        one, other = (variance_hinge(view) for view in features)
        variance = (one + other) / 2
        return losses.mean() + self.config.variance_weight * variance, metrics | {"variance": variance.detach()}

    def compare(self, features: list[Tensor], inputs: list[Inputs], related: Related) -> tuple[Tensor, ...]:
        """Loss and cosine of each pair, (B,) both, from the pooled features of both views."""
        z1, z2 = (self.projector(view) for view in features)
        return self._losses(z1, z2, related), alignment(z1, z2)

    def _losses(self, z1: Tensor, z2: Tensor, related: Related) -> Tensor:
        temperature, sigma, decoupled = self.config.temperature, self.config.sigma, self.config.loss == "dcl"
        if isinstance(related, Relations):
            return (soft_dcl if decoupled else soft_nt_xent)(z1, z2, temperature, related)
        if sigma is not None:
            return dclw(z1, z2, temperature, sigma, related)
        return (dcl if decoupled else nt_xent)(z1, z2, temperature, related)

    def _inputs(self, *views: Batch) -> list[Inputs]:
        dtype = next(self.projector.parameters()).dtype
        return [(view.voxels.to(dtype), view.valid) for view in views]

    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The two views."""
        first, second = same_shape(views[0].voxels, views[1].voxels)
        return {"first view": first, "second view": second}

    def check_shape(self, shape: Size3D) -> None:
        """What the encoder can encode."""
        self.encoder.check_input(shape)


class MomentumContrastive(Contrastive):
    """MoCo v3: predictions of one view's embedding find the other's, made by slowly following copies, as keys."""

    def __init__(self, config: ContrastiveConfig, encoder: Encoder) -> None:
        super().__init__(config, encoder)
        hidden, dim = config.projector_hidden, config.projector_dim
        self.predictor = mlp(dim, hidden, dim, 2, last_norm=isinstance(encoder, TokenEncoder))
        self.follower = Follower(encoder=encoder, projector=self.projector)

    def compare(self, features: list[Tensor], inputs: list[Inputs], related: Related) -> tuple[Tensor, ...]:
        """Loss and cosine of queries and keys of each pair, mean over both directions, (B,) both."""
        q1, q2 = (self.predictor(self.projector(view)) for view in features)
        k1, k2 = self._keys(inputs)
        if isinstance(related, Relations):
            losses = soft_moco_v3((q1, q2), (k1, k2), self.config.temperature, related)
        else:
            losses = moco_v3((q1, q2), (k1, k2), self.config.temperature, related)
        return losses, (alignment(q1, k2) + alignment(q2, k1)) / 2

    @torch.no_grad()
    def _keys(self, inputs: list[Inputs]) -> list[Tensor]:
        encoder, projector = (self.follower.get_submodule(name) for name in ("encoder", "projector"))
        return [projector(features) for features in pooled(cast(Encoder, encoder), inputs)]

    def after_step(self, progress: float) -> None:
        """The copies follow, ever more slowly."""
        momentum = cosine_momentum(self.config.momentum or 0.0, progress)
        self.follower.follow(momentum, encoder=self.encoder, projector=self.projector)


def same_scans(*views: Batch) -> Tensor:
    """Ids (B, views) int64 of the scans of each pair, equal on every rank for the same scan of the same source."""
    names = [[f"{source}/{key}" for source, key in zip(view.sources, view.keys, strict=True)] for view in views]
    ids = [[_number(name) for name in column] for column in names]
    return to_device(torch.tensor(ids, dtype=torch.int64).t().contiguous(), views[0].voxels.device)


def _number(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)
