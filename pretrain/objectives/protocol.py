"""What every pre-training objective offers to the training loop."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from torch import Tensor, nn

from scanfoundry.backbones.layers.segmentation import Part
from scanfoundry.backbones.protocol import Encoder, Family
from scanfoundry.configs.base import Config
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch


class Objective(nn.Module, ABC):
    """`loss, metrics = objective(*views)`; the encoder is what a release keeps.

    views: how many batches `forward` takes. They have the same length, and row i of each shows the same subject;
    their (D, H, W) may differ, even in the number of dimensions.

    own_decoder: whether it trains the backbone's own decoder (`Encoder.feature_decoder`), which it then holds as
    `decoder`, and what gives voxels, if anything does, as `head`. A release keeps both.
    clean: whether it compares with the crop before its intensities were changed (`Batch.clean`).
    needs_depth: whether volumes alone give it what it asks for: places along their depth.
    labels: whether it reads the label maps of synthetic scans (`Batch.labels`), of two appearances at one place.
    """

    encoder: Encoder
    views: int = 1
    own_decoder: bool = False
    clean: bool = False
    needs_depth: bool = False
    labels: bool = False

    @abstractmethod
    def forward(self, *views: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar loss, float32 or wider, and detached metrics to be logged.

        A metric is a scalar, or one number for each sample (B,), which the engine averages over all samples and by
        the modality of views[0]. Numbers that are NaN (a sample that has none) are left out of the averages.
        """

    @abstractmethod
    def show(self, *views: Batch) -> dict[str, Tensor]:
        """Columns of pictures by name, in order, each (B, C, D, H, W), as training would see them.

        Columns whose names are the same up to a colon ("scan", "scan: visible") share the first one's grey scale.
        """

    @abstractmethod
    def check_shape(self, shape: Size3D) -> None:
        """Raise UserError, naming what is allowed, where crops of (D, H, W) cannot be trained on."""

    def trained_parts(self) -> dict[Part, str]:
        """The submodule that holds each part of the model that a release keeps."""
        own: dict[Part, str] = {"decoder": "decoder", "head": "head"} if self.own_decoder else {}
        return {"encoder": "encoder", **own}

    def viewers(self, view: int) -> list["Objective"]:
        """The objectives that see view number `view`: whose `check_shape` that view's crops must pass."""
        return [self] if view < self.views else []

    def teachers(self) -> dict[str, Encoder]:
        """Encoders within the objective that hold the weights of released models, by the models' names."""
        return {}

    def after_step(self, progress: float) -> None:
        """Called on every rank after each optimiser step that was applied; progress in [0, 1] of the run."""


class ObjectiveOptions(Config):
    """Base of the configurations of objectives.

    Each declares `name: Literal["..."] = "..."`, by which a configuration chooses it.
    """

    if TYPE_CHECKING:  # each objective declares it among its own fields
        name: str

    def filled(self, family: Family) -> Self:
        """With what was left out and depends on the backbone's family; `config.yaml` of a run shows it."""
        return self

    @property
    def label(self) -> str:
        """How `model.json` names it."""
        return self.name

    @property
    def compares_samples(self) -> bool:
        """Whether the loss of a sample depends on those that it is seen with, and so on `engine.accumulation`."""
        return False

    @abstractmethod
    def build(self, encoder: Encoder) -> Objective:
        """The objective on an encoder.

        Raises:
            UserError: they do not go together.
        """
