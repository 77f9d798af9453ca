"""What a forward and backward pass holds, step by step, without the memory or the arithmetic of it.

The objective runs for real, at the run's own crop and batch, on tensors that have a shape and no numbers (torch's fake
tensors); masks and other integers are real, since shapes depend on them. Every storage that an operation makes is
counted until it is let go. Of the buffers that a kernel takes for itself while it runs, the largest are counted: the
rearranged copies that the backward pass of a convolution makes of its input and of the gradient.
"""

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scanfoundry.backbones.registry import build
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.centres import Centres
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.engine import activation_checkpointing
from scanfoundry.pretrain.objectives import Objective
from scanfoundry.pretrain.sparse import norm
from scanfoundry.pretrain.views import view_shapes


@dataclass(frozen=True)
class Trace:
    """Bytes over a forward and backward pass.

    inputs    the views themselves
    forward   the most that the forward pass holds
    backward  (bytes of gradients that are done, the most held beside them), in the order of the backward pass
    """

    inputs: int
    forward: int
    backward: tuple[tuple[int, int], ...]

    @property
    def peak(self) -> int:
        """The most held at any time, gradients of weights left out."""
        return max(self.forward, *(held for _, held in self.backward))


class Without(TorchDispatchMode):
    """Initialisers look at numbers to see whether they are done; there are none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, or say 0 where it reads a number."""
        if func is torch.ops.aten._local_scalar_dense.default:
            return 0
        return func(*args, **(kwargs or {}))


def fake_objective(config: PretrainConfig) -> tuple[Objective, FakeTensorMode]:
    """The run's objective on weights without memory, and the mode that they belong to."""
    with torch.device("meta"), Without():
        objective = config.objective.build(build(config.backbone))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for module in objective.modules():
            for name, parameter in module.named_parameters(recurse=False):
                value = torch.empty_like(parameter, device="cpu")
                setattr(module, name, nn.Parameter(value, parameter.requires_grad))
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
    return objective, mode


def trace(
    config: PretrainConfig, crop: Size3D, samples: int, checkpointing: bool, device: Literal["cpu", "cuda"]
) -> Trace:
    """The pass over `samples` crops (D, H, W) on one rank, in the run's precision.

    It runs as on a CPU, in whose place fake tensors stand; for "cuda" the norms of packed maps take all blocks at once,
    as they do there.
    """
    objective, mode = fake_objective(config)
    if checkpointing:
        activation_checkpointing.apply(objective)
    with mode:
        views = fake_views(config, objective, crop, samples)
    bf16 = config.engine.precision == "bf16"
    tally = _Tally([*objective.parameters(), *objective.buffers()])
    for parameter in objective.parameters():
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(tally.gradient)
    chunk = norm.CHUNK if device == "cpu" else sys.maxsize
    with patch.object(norm, "CHUNK", chunk), tally:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss, _ = objective(*views)
        tally.turn()
        loss.backward()
    given = (tensor for view in views for tensor in (view.voxels, view.valid, view.clean) if tensor is not None)
    inputs = sum(tensor.untyped_storage().nbytes() for tensor in given)
    return Trace(inputs, tally.forward, tuple(tally.backward.items()))


def fake_views(config: PretrainConfig, objective: Objective, crop: Size3D, samples: int) -> tuple[Batch, ...]:
    """The views of `samples` crops (D, H, W) that the objective takes; to be called in its mode."""
    shapes = (view_shapes(config.data, crop, i)[0] for i in range(objective.views))
    return tuple(_view(config, shape, samples, objective) for shape in shapes)


def _view(config: PretrainConfig, shape: Size3D, samples: int, objective: Objective) -> Batch:
    voxels = torch.zeros(samples, config.data.channels, *shape)
    valid = torch.ones(samples, 1, *shape, dtype=torch.bool)
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        seeds = torch.arange(samples)
        labels = torch.zeros(samples, 1, *shape, dtype=torch.uint8) if objective.labels else None
    names = [str(number) for number in range(samples)]
    before = torch.zeros_like(voxels) if objective.clean else None
    centres, modalities = Centres.unknown(samples), ["mr"] * samples
    return Batch(voxels, valid, seeds, names, modalities, names, 0, clean=before, centres=centres, labels=labels)


class _Tally(TorchDispatchMode):
    """Counts storages from the operation that makes them until nothing refers to them."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self._seen: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._held = self._done = self.forward = 0
        self.backward: dict[int, int] = {}
        self._peak: Callable[[], None] = self._in_forward
        for tensor in known:
            self._see(tensor, 0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf, leaf.untyped_storage().nbytes())
        if func is torch.ops.aten.convolution_backward.default:  # cuDNN and oneDNN rearrange what they read
            self._held += (inside := sum(tensor.numel() * tensor.element_size() for tensor in args[:2]))
            self._peak()
            self._held -= inside
        self._peak()
        return result

    def turn(self) -> None:
        """The backward pass begins."""
        self._peak = self._in_backward
        self._peak()

    def gradient(self, parameter: nn.Parameter) -> None:
        """A parameter's gradient is done: it counts as such, and no longer as an activation."""
        parameter.grad = None
        self._done += parameter.numel() * parameter.element_size()
        self._peak()

    def _in_forward(self) -> None:
        self.forward = max(self.forward, self._held)

    def _in_backward(self) -> None:
        self.backward[self._done] = max(self.backward.get(self._done, 0), self._held)

    def _see(self, tensor: Tensor, size: int) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._seen:
            self._seen[key] = (weakref.ref(storage, partial(self._let_go, key)), size)
            self._held += size

    def _let_go(self, key: int, _: Any) -> None:
        _, size = self._seen.pop(key)
        self._held -= size
