"""The part of a teacher in the loss of fine-tuning: softened probabilities, or features of the encoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from scanfoundry.backbones.distillation import FeatureMatch, outputs_of
from scanfoundry.backbones.layers.segmentation import UNet
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.finetune.config.distil import DistilConfig
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.training.resuming import Part


@dataclass(frozen=True)
class Teacher:
    """Trained networks that learn nothing more: the members of a fine-tuned model, or one encoder."""

    config: DistilConfig
    networks: Sequence[nn.Module]


class Distillation:
    """Adds to a task's loss how far a student is from its teacher, on the same augmented batch.

    Args:
        teacher: the networks, which come to `device` in evaluation mode.
        adapter: the task.
        encoder: of the student.
        seed: of the projections; torch's own generator is left alone, so that arms with a teacher and without one
            draw the same numbers.
        device: of the training.
    """

    def __init__(
        self, teacher: Teacher, adapter: Adapter[Any, Any], encoder: Encoder, seed: int, device: torch.device
    ) -> None:
        self._config, self._adapter = teacher.config, adapter
        self._networks = [network.to(device).eval().requires_grad_(False) for network in teacher.networks]
        self._match: FeatureMatch | None = None
        if teacher.config.what == "features":
            wanted = teacher.networks[0]
            assert isinstance(wanted, Encoder)
            with torch.random.fork_rng([]):
                torch.manual_seed(seed)
                self._match = FeatureMatch(encoder.feature_channels[-1], wanted.feature_channels[-1]).to(device)

    def parameters(self) -> list[nn.Parameter]:
        """The projections, which are trained beside the model and no part of it."""
        return [] if self._match is None else list(self._match.parameters())

    def loss(self, model: TaskModel, images: Tensor, targets: Any) -> Tensor:
        """The task's loss and the teacher's, of one pass of the student."""
        with _seen(model, self._match is not None) as seen:
            task = self._adapter.loss(model, images, targets)
        return task + self._config.weight * self.term(seen[-1], images)

    def term(self, given: Any, images: Tensor) -> Tensor:
        """The teacher's part: of what the student gave for the images (B, C, D, H, W)."""
        if self._match is not None:
            with torch.no_grad():
                wanted = self._networks[0](images)[-1]
            places, whole = self._match(given[-1], wanted)
            return places.mean() + whole.mean()
        heat = self._config.temperature
        with torch.no_grad():
            softened = [(_wide(network(images)) / heat).softmax(1) for network in self._networks]
        logits = given[0] if isinstance(given, list) else given  # of deep supervision the full resolution
        return heat**2 * divergence(torch.stack(softened).mean(0), _wide(logits) / heat)

    def state(self) -> Part:
        """The projections, for a snapshot; the teacher is read again."""
        return ({} if self._match is None else dict(self._match.state_dict())), {}

    def restore(self, part: Part) -> None:
        """Go on from what `state` gave."""
        if self._match is not None:
            self._match.load_state_dict(part[0])


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def divergence(wanted: Tensor, logits: Tensor) -> Tensor:
    """Mean over scans and places of KL(wanted, softmax(logits)): probabilities and logits (B, K, ...)."""
    known = torch.xlogy(wanted, wanted) - wanted * logits.log_softmax(1)
    return known.sum(1).mean()


@contextmanager
def _seen(model: TaskModel, features: bool) -> Iterator[list[Any]]:
    """What the model gives within the context, or the feature maps of its encoder.

    A U-Net may share the encoder's layers and not call the encoder itself; then its `encode` is watched.
    """
    watched = next((m for m in model.modules() if isinstance(m, Encoder)), None) if features else model
    if watched is not None:
        with outputs_of([watched]) as seen:
            yield seen
        return
    network = next(m for m in model.modules() if isinstance(m, UNet))
    encode, found = network.encode, list[Any]()

    def kept(x: Tensor) -> list[Tensor]:
        maps = encode(x)
        found.append(maps)
        return maps

    network.__dict__["encode"] = kept
    try:
        yield found
    finally:
        del network.__dict__["encode"]
