"""Weights that follow others as exponential moving averages: momentum encoders (He et al. 2020, arXiv 1911.05722)."""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

AT_ONCE = 64  # tensors that are moved together on a device: the differences of all at once would be a copy of a model
_skip: ContextVar[Tensor | None] = ContextVar("skip", default=None)


@contextmanager
def unless(skip: Tensor) -> Iterator[None]:
    """In this context `ema_update` changes nothing where `skip` () bool is True, which only the device knows."""
    token = _skip.set(skip)
    try:
        yield
    finally:
        _skip.reset(token)


def skipped() -> Tensor | None:
    """The `skip` of `unless`; None outside of it."""
    return _skip.get()


class Follower(nn.Module):
    """Copies of modules, without gradients, whose weights are averages of theirs over the steps.

    They run in evaluation mode (no dropout, no dropped paths), but their batch norms take the statistics of the
    batch while training, as MoCo v3's keys do; the running ones are averages of the leaders' like all the rest.
    The copies' names in the state dict begin with this module's name, so that a resumed run finds them.
    """

    def __init__(self, **leaders: nn.Module) -> None:
        super().__init__()
        for name, leader in leaders.items():
            self.add_module(name, copy.deepcopy(leader).requires_grad_(False))
        for norm in self._batch_norms():
            norm.momentum = 0.0  # its own batches do not move the running statistics
        self.train(True)

    def follow(self, momentum: float | Tensor, **leaders: nn.Module) -> None:
        """One step of `ema_update` towards the leaders, named as at the start."""
        for name, leader in leaders.items():
            ema_update(self.get_submodule(name), leader, momentum)

    def train(self, mode: bool = True) -> "Follower":
        """Switches the batch norms alone."""
        super().train(False)
        for norm in self._batch_norms():
            norm.train(mode)
        return self

    def _batch_norms(self) -> list[_BatchNorm]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float | Tensor) -> None:
    """teacher = momentum * teacher + (1 - momentum) * student, over parameters and buffers of the same names.

    Buffers that are no floating-point numbers are copied. Under DeepSpeed's ZeRO 3, each rank averages its own
    shards, without communication; call it after the optimiser's step, on every rank.

    Args:
        teacher: what follows.
        student: what it follows.
        momentum: also () on the device, where only that knows it.

    Raises:
        ValueError: their tensors have other names.
        RuntimeError: a tensor is whole in the teacher, partitioned in the student.
    """
    moved: list[tuple[Tensor, Tensor]] = []
    for tensors in (nn.Module.named_parameters, nn.Module.named_buffers):
        behind, ahead = dict(tensors(teacher)), dict(tensors(student))
        if behind.keys() != ahead.keys():
            raise ValueError(f"teacher and student differ in {sorted(behind.keys() ^ ahead.keys())}")
        for name, old in behind.items():
            olds, news = local(old), local(ahead[name])
            if len(olds) > len(news):
                raise RuntimeError(f"{name} is whole on this rank in the teacher, partitioned in the student")
            for held, new in zip(olds, news, strict=False):
                if held.is_floating_point():
                    moved.append((held, new))
                else:
                    skip = skipped()
                    held.copy_(new if skip is None else torch.where(skip, held, new))
    _move(moved, momentum)


def _move(pairs: list[tuple[Tensor, Tensor]], momentum: float | Tensor) -> None:
    """Move the first tensor of each pair towards the second."""
    skip = _skip.get()
    if skip is None and not isinstance(momentum, Tensor):
        if pairs:
            behind, ahead = zip(*pairs, strict=True)
            torch._foreach_lerp_(behind, ahead, 1 - momentum)
        return
    for start in range(0, len(pairs), AT_ONCE):
        behind, ahead = zip(*pairs[start : start + AT_ONCE], strict=True)
        share = 1 - momentum if isinstance(momentum, Tensor) else torch.full((), 1 - momentum, device=ahead[0].device)
        weight = share.float() if skip is None else torch.where(skip, 0.0, share.float())
        ways = torch._foreach_sub(ahead, behind)
        torch._foreach_mul_(ways, weight)
        torch._foreach_add_(behind, ways)


def local(tensor: Tensor) -> list[Tensor]:
    """The storages in which this rank holds a parameter or buffer: its data, or its shard under ZeRO 3.

    ZeRO 3 keeps small parameters whole beside their shard: then both, the shard first, which must change together.
    In a world of one they are the same memory, which is given once.
    """
    held: Any = tensor
    shard = getattr(held, "ds_tensor", None)
    if shard is None:
        return [tensor.data]
    whole = held.ds_status.name == "AVAILABLE" and shard.data_ptr() != tensor.data_ptr()
    return [shard, tensor.data] if whole else [shard]


def cosine_momentum(start: float, progress: float) -> float:
    """From `start` to 1 along half a cosine (MoCo v3); progress in [0, 1]."""
    return 1 - (1 - start) * 0.5 * (1 + math.cos(math.pi * progress))
