"""The network of a fine-tuned model as one function from an image to named arrays, free of scanfoundry imports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.heads.detection import DetectionModel
from scanfoundry.finetune.model_file import adapter_for, load_model
from scanfoundry.finetune.spec import Spec, Standard
from scanfoundry.finetune.task import Adapter, TaskModel

INPUT = "image"


class DenseNetwork(nn.Module):
    """The outputs before anything that is no network: no softmax, no sliding window, no decoding of boxes.

    (B, C, D, H, W) -> segmentation: logits (B, K, D, H, W); classification: logits (B, K); regression: values (B, 1)
    in their own unit; detection: for each level class logits (B, A * K, ...) and, after all of them, for each level box
    regression (B, A * 2 * axes, ...).
    """

    def __init__(self, model: TaskModel, standard: Standard | None) -> None:
        super().__init__()
        self.standard = standard
        self.is_2d_detector = isinstance(model, DetectionModel) and model.is_2d
        self.network = model.detector.network if isinstance(model, DetectionModel) else model

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        """One array, or for a detector one of each name in `Traceable.names`."""
        found = self.network(image.squeeze(2) if self.is_2d_detector else image)
        if isinstance(found, Tensor):
            return found if self.standard is None else found.unsqueeze(1) * self.standard.std + self.standard.mean
        heads = cast(dict[str, list[Tensor]], found)
        return tuple(level for maps in heads.values() for level in maps)


@dataclass(frozen=True)
class Traceable:
    """A network ready to be traced."""

    network: DenseNetwork
    example: Tensor  # (2, C, *patch): a batch of one would be taken for a constant
    names: list[str]  # of the outputs, in the network's order
    shapes: list[list[int]]  # of the outputs for one image, without the batch

    def reference(self, image: Tensor) -> list[Tensor]:
        """The outputs for an image (B, C, *patch)."""
        with torch.no_grad():
            return list(as_tuple(self.network(image)))


def single_model(run: Path) -> tuple[Adapter[Any, Any], TaskModel]:
    """The task and the network of a fine-tuning run; UserError for an ensemble, which is no one network."""
    adapter, members = load_model(run)
    if len(members) > 1:
        raise UserError(
            f"{run} is an ensemble of {len(members)} folds: export it with --to release, or train one model with "
            "validation.fraction in place of validation.folds"
        )
    return adapter, members[0]


def traceable(model: TaskModel, spec: Spec) -> Traceable:
    """The dense network in evaluation mode."""
    network = DenseNetwork(model, spec.standard).eval()
    generator = torch.Generator().manual_seed(0)
    example = torch.randn(2, spec.backbone.in_channels, *spec.plan.patch, generator=generator)
    # Tables of positions are made at the first call for a grid and kept: it must not be the tracing one, or what is
    # kept would be of the tracer's own kind.
    with torch.no_grad():
        found = as_tuple(network(example))
    names = adapter_for(spec).array_names(len(found))
    return Traceable(network, example, names, [list(part.shape[1:]) for part in found])


def as_tuple(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs as a tuple, also of a network that has one."""
    return (found,) if isinstance(found, Tensor) else tuple(found)


def differences(reference: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """The largest absolute difference of any number of any output; nan where one is none."""
    largest = [(a - b).detach().abs().max() for a, b in zip(reference, found, strict=True)]
    return float(torch.stack(largest).max())  # which keeps a nan, as Python's max does not
