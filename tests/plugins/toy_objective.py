"""A pre-training objective from outside of the project: the encoder learns the mean brightness of a scan."""

from typing import Literal

import torch
from torch import Tensor, nn

from scanfoundry.backbones.protocol import Encoder
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions


class ToyMeanConfig(ObjectiveOptions):
    """Factor of the loss."""

    name: Literal["toy_mean"] = "toy_mean"
    scale: float = 1.0

    def build(self, encoder: Encoder) -> "ToyMean":
        """The objective on an encoder, which may be any."""
        return ToyMean(self, encoder)


class ToyMean(Objective):
    """Squared error of a linear prediction of each scan's mean from its pooled features."""

    def __init__(self, config: ToyMeanConfig, encoder: Encoder) -> None:
        super().__init__()
        self.config, self.encoder = config, encoder
        self.linear = nn.Linear(encoder.pooled_dim, 1)

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and the error of each scan (B,)."""
        batch = views[0]
        predicted = self.linear(self.encoder.pooled(batch.voxels, batch.valid)).flatten()
        errors = (predicted - batch.voxels.mean((1, 2, 3, 4))).square().float()
        return self.config.scale * errors.mean(), {"toy_error": errors.detach()}

    @torch.no_grad()
    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The scans."""
        return {"scan": views[0].voxels}

    def check_shape(self, shape: Size3D) -> None:
        """What the encoder can encode."""
        self.encoder.check_input(shape)


PLUGINS = {"objective": [ToyMeanConfig]}
