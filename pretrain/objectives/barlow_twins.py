"""Barlow Twins (Zbontar et al. 2021, arXiv 2103.03230), with mixed samples (Bandara et al. 2023, arXiv 2312.02151)."""

import random
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.losses.barlow_twins import barlow_twins, mixed_regulariser, standardised
from scanfoundry.pretrain.losses.contrastive import alignment
from scanfoundry.pretrain.objectives.projector import check_pair_count, mlp, pooled, same_shape
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions

Positive = Annotated[int, Field(gt=0)]


class BarlowTwinsConfig(ObjectiveOptions):
    """Weights of the terms, and the projector (the paper's)."""

    name: Literal["barlow_twins"] = "barlow_twins"
    redundancy: Annotated[float, Field(gt=0)] = 0.0051  # the paper's lambda: weight of what is off the diagonal
    scale: Annotated[float, Field(gt=0)] = 1.0  # of the whole loss, which grows with the embedding
    projector_hidden: Positive = 8192
    projector_dim: Positive = 8192
    projector_layers: Annotated[int, Field(ge=2)] = 3
    mixed: Annotated[float, Field(gt=0)] | None = None  # weight of the mixed-sample term (1 to 3 in its paper)
    mixed_warmup: Annotated[float, Field(ge=0, le=1)] = 0.0  # share of the run over which that weight rises from 0

    @model_validator(mode="after")
    def _nothing_is_ignored(self) -> "BarlowTwinsConfig":
        if self.mixed_warmup and self.mixed is None:
            raise ValueError("mixed_warmup needs `mixed`, the weight of the mixed-sample term")
        return self

    @property
    def compares_samples(self) -> bool:
        """It does: with the other samples of a micro-batch, on all ranks."""
        return True

    def build(self, encoder: Encoder) -> "BarlowTwins":
        """The objective on an encoder."""
        return BarlowTwins(self, encoder)


class BarlowTwins(Objective):
    """The correlation of two views' embeddings, over the batch of all ranks, is pulled to the identity."""

    views = 2
    progress: Tensor  # of the run, in [0, 1]; a buffer, so that a resumed run knows it before its first step

    def __init__(self, config: BarlowTwinsConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        sizes = (encoder.pooled_dim, config.projector_hidden, config.projector_dim, config.projector_layers)
        self.projector = mlp(*sizes, last_norm=False)
        self.register_buffer("progress", torch.zeros(()))

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss; metrics: its terms, and `alignment`, the cosine of each sample's pair (B,)."""
        check_pair_count(views)
        dtype = next(self.projector.parameters()).dtype
        inputs = [(view.voxels.to(dtype), view.valid) for view in views]
        share, partner = mixing(views[0])
        if self.config.mixed is not None:
            inputs.append(mix(inputs, share, partner))
        z1, z2, *mixed = (standardised(self.projector(features)) for features in pooled(self.encoder, inputs))
        on_diagonal, off_diagonal = barlow_twins(z1, z2, self.config.redundancy)
        terms = {"on_diagonal": on_diagonal, "off_diagonal": off_diagonal}
        if self.config.mixed is not None:
            term = mixed_regulariser(mixed[0], z1, z2, partner, share, self.config.redundancy)
            terms["mixed"] = self._mixed_weight(self.config.mixed) * term
        loss = self.config.scale * torch.stack(list(terms.values())).sum()
        metrics = {name: value.detach() for name, value in terms.items()}
        return loss, {**metrics, "alignment": alignment(z1, z2).detach()}

    def _mixed_weight(self, weight: float) -> Tensor | float:
        warmup = self.config.mixed_warmup
        return weight * (self.progress / warmup).clamp(max=1) if warmup else weight

    def after_step(self, progress: float) -> None:
        """For the warm-up of the mixed term."""
        self.progress.fill_(progress)

    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The two views, and their mixture where it is trained on."""
        first, second = views
        columns = {"first view": first.voxels, "second view": second.voxels}
        if self.config.mixed is not None:
            columns["mixture"], _ = mix([(view.voxels, view.valid) for view in views], *mixing(first))
        return dict(zip(columns, same_shape(*columns.values()), strict=True))

    def check_shape(self, shape: Size3D) -> None:
        """What the encoder can encode."""
        self.encoder.check_input(shape)


def mixing(batch: Batch) -> tuple[float, Tensor]:
    """The first view's share, Beta(1, 1) of the step and so the same on all ranks, and partners (B,) int64.

    Partners lie on the same rank, by the samples' seeds. Nothing is drawn from a running generator.
    """
    share = random.Random(f"share of step {batch.step}").random()
    order = random.Random(f"partners of {batch.seeds.tolist()}").sample(range(len(batch)), len(batch))
    return share, to_device(torch.tensor(order), batch.voxels.device)


def mix(views: Sequence[tuple[Tensor, Tensor]], share: float, partner: Tensor) -> tuple[Tensor, Tensor]:
    """share * x1 + (1 - share) * x2[partner], and where both are valid; each of the two views is voxels and valid.

    Raises:
        UserError: they are of different sizes.
    """
    (x1, valid1), (x2, valid2) = views
    if x1.shape != x2.shape:
        raise UserError(
            f"objective.mixed mixes two views of one size, and these are {tuple(x1.shape[2:])} and "
            f"{tuple(x2.shape[2:])}: remove it, or choose other data.positives"
        )
    return share * x1 + (1 - share) * x2[partner], valid1 & valid2[partner]
