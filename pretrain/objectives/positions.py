"""The option `positions` of contrastive objectives: crops at the same place of different scans are positives."""

from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from scanfoundry.configs.base import Config
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.centres import Centres
from scanfoundry.datasets.crop import mix
from scanfoundry.datasets.device import to_device
from scanfoundry.pretrain.losses.positional import Kernel, Relations, position_relations

AXES = ("d", "h", "w")


class PositionsConfig(Config):
    """Which crops are at the same place; see `position_relations`. Distances are shares of a scan's extent.

    A crop's place is compared within its source, its modality and its number of dimensions alone. Where a source's
    scans do not show the same part of the body, equal places are not the same anatomy.
    """

    axes: Annotated[list[Literal["d", "h", "w"]], Field(min_length=1)]  # of a scan in standard orientation, `Centres`
    kernel: Kernel = "uniform"
    bandwidth: Annotated[float, Field(gt=0)] = 0.1

    @model_validator(mode="after")
    def _each_axis_once(self) -> "PositionsConfig":
        if len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axes {self.axes}: name each axis once")
        return self

    @property
    def depth_alone(self) -> bool:
        """Whether images, which have no depth, have no position."""
        return self.axes == ["d"]

    def relations(self, first: Batch, second: Batch, same: Tensor) -> Relations:
        """What the rows of two views are to each other; `same` as in the losses."""
        positions = torch.stack([torch.from_numpy(_centres(view).shares) for view in (first, second)], dim=1)
        groups = torch.tensor([_groups(view) for view in (first, second)], dtype=torch.int64).t()
        chosen = positions[:, :, [AXES.index(axis) for axis in self.axes]]
        device = first.voxels.device
        places, comparable = to_device(chosen, device), to_device(groups, device)
        return position_relations(places, comparable, same, self.kernel, self.bandwidth)


def _centres(view: Batch) -> Centres:
    if view.centres is None:
        raise ValueError("the batch does not say where its crops lie: it has no centres")
    return view.centres


def _groups(view: Batch) -> list[int]:
    """A number for each crop, equal on every rank for crops whose positions can be compared."""
    facts = zip(view.sources, view.modalities, _centres(view).oriented.tolist(), strict=True)
    return [mix(*f"{source}/{modality}/{oriented}/{view.is_2d}".encode()) >> 1 for source, modality, oriented in facts]
