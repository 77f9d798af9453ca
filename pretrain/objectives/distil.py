"""Distillation of a released encoder: the student gives the teacher's features of the same crop.

In the spirit of ScaleKD (Fan et al. 2024, arXiv 2411.06786): projected features, at each place and as a whole, against
the teacher's directions. The two may be of other families, sizes and strides.
"""

from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from scanfoundry.backbones import read_about
from scanfoundry.backbones.distillation import FeatureMatch
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.ema import Follower
from scanfoundry.pretrain.losses.features import weighted_mean
from scanfoundry.pretrain.objectives.protocol import Objective, ObjectiveOptions


class DistilConfig(ObjectiveOptions):
    """The teacher, and what each of the two distances counts."""

    name: Literal["distil"] = "distil"
    teacher: str  # a run folder, a file, or an installed model
    dense_weight: Annotated[float, Field(ge=0)] = 1.0  # of the features at each place of the teacher's grid
    pooled_weight: Annotated[float, Field(ge=0)] = 1.0  # of their means over the scan

    @model_validator(mode="after")
    def _something_is_learnt(self) -> "DistilConfig":
        if self.dense_weight + self.pooled_weight == 0:
            raise ValueError("dense_weight and pooled_weight are both 0: nothing would be learnt; raise one")
        return self

    @property
    def label(self) -> str:
        """With the teacher's name, without its folders."""
        return f"{self.name} of {Path(self.teacher).name}"

    def build(self, encoder: Encoder) -> "Distil":
        """The objective on an encoder.

        Raises:
            UserError: there is no such teacher.
        """
        with torch.device("cpu"):  # also where memory is estimated on weights without numbers
            described = read_about(self.teacher)[0].backbone
        teacher = build(described.model_copy(update={"in_channels": encoder.in_channels}))
        return Distil(self, encoder, teacher)


class Distil(Objective):
    """The student's deepest features, projected, beside those of a teacher that stays as it is.

    The teacher's weights are part of the state: a run continues with those that it began with.
    """

    def __init__(self, config: DistilConfig, encoder: Encoder, teacher: Encoder) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoder
        self.match = FeatureMatch(encoder.feature_channels[-1], teacher.feature_channels[-1])
        self.teacher = Follower(encoder=teacher)

    def teachers(self) -> dict[str, Encoder]:
        """The teacher, whose weights are read before the first step."""
        return {self.config.teacher: self._teacher}

    @property
    def _teacher(self) -> Encoder:
        return cast(Encoder, self.teacher.get_submodule("encoder"))

    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted distances; metrics `dense` and `pooled`, the squared distance of directions, each (B,).

        A place counts by its share of valid voxels, in the batch of all ranks.
        """
        batch = views[0]
        places, whole = self._distances(batch)
        grid = (places.shape[1], places.shape[2], places.shape[3])
        share = F.adaptive_avg_pool3d(batch.valid.to(places.dtype), grid).squeeze(1)
        loss, of_each = weighted_mean(places, share)
        total = self.config.dense_weight * loss + self.config.pooled_weight * whole.mean()
        return total, {"dense": of_each, "pooled": whole.detach()}

    def _distances(self, batch: Batch) -> tuple[Tensor, Tensor]:
        voxels = batch.voxels.to(self.match.pooled.weight.dtype)
        with torch.no_grad():
            wanted = self._teacher(voxels)[-1]
        found: tuple[Tensor, Tensor] = self.match(self.encoder(voxels)[-1], wanted, batch.valid)
        return found

    @torch.no_grad()
    def show(self, *views: Batch) -> dict[str, Tensor]:
        """The scan, and where the student's features have the teacher's direction: from -1 to 1."""
        voxels = views[0].voxels
        cosine = 1 - self._distances(views[0])[0] / 2
        agreement = F.interpolate(cosine[:, None].to(voxels.dtype), size=voxels.shape[2:], mode="nearest")
        return {"scan": voxels, "agreement": agreement.expand_as(voxels)}

    def check_shape(self, shape: Size3D) -> None:
        """What both can encode."""
        self.encoder.check_input(shape)
        self._teacher.check_input(shape)
