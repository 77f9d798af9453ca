"""Collectives that autograd goes through; without a process group, or in a world of one, they do nothing.

The convention: each rank has a loss, the run's loss is their mean over ranks, and the engine averages gradients
over ranks. The gradient of `gathered` and `summed` is therefore the sum over ranks of what each rank's loss asks
for: after the averaging it is that of the loss on the concatenated batch. A plain `dist.all_reduce` or
`all_gather` in a loss gives 1 / world of it, or that of the own rows alone (lightly issue 1977).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class _Group:
    alone = False


@contextmanager
def alone() -> Iterator[None]:
    """Within it this process counts as the only one: for a pass that others do not make."""
    before, _Group.alone = _Group.alone, True
    try:
        yield
    finally:
        _Group.alone = before


def rank_and_size() -> tuple[int, int]:
    """This process's rank and the number of ranks; (0, 1) without a process group, and `alone`."""
    if _Group.alone or not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(), dist.get_world_size()


def gathered(x: Tensor) -> Tensor:
    """Stack x (n, ...) of every rank in rank order: (world * n, ...); every rank must have the same n.

    Raises ValueError on every rank where the shapes differ, which are compared when a shape is first met: the host
    waits for that answer. Integers and booleans pass, without a gradient.
    """
    if rank_and_size()[1] == 1:
        return x
    _check_rectangular(x)
    return _Gathered.apply(x)


def summed(x: Tensor) -> Tensor:
    """The sum over ranks of x, elementwise; its shape must be fixed by the model, not by the rank's batch."""
    return x if rank_and_size()[1] == 1 else _Summed.apply(x)


def global_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (F,), biased variance (F,) and count () of the rows x (n, F) of all ranks, whose n may differ.

    In two passes: the squares of the differences from the mean do not cancel as E[x^2] - E[x]^2 does.
    """
    totals = summed(torch.cat((x.sum(dim=0), x.new_full((1,), len(x)))))
    count = totals[-1].detach()
    mean = totals[:-1] / count
    return mean, summed((x - mean).square().sum(dim=0)) / count, count


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """All ranks' rows."""
        ctx.rows = len(x)
        _, size = rank_and_size()
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(size)]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The sum over ranks of the gradients of this rank's rows."""
        rank, _ = rank_and_size()
        return _all_reduce(grad)[rank * ctx.rows : (rank + 1) * ctx.rows]


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """The sum over ranks."""
        return _all_reduce(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        """The sum of all ranks' gradients."""
        return _all_reduce(grad)


def _all_reduce(x: Tensor) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total


_MET: set[tuple[tuple[int, ...], torch.device]] = set()  # shapes that were the same on all ranks


def _check_rectangular(x: Tensor) -> None:
    """Shapes that differ would hang or mix up nccl; the sizes are compared through their extremes."""
    if (tuple(x.shape), x.device) in _MET:
        return
    own = [len(x), x.numel()]
    bounds = torch.tensor([*own, *(-size for size in own)], device=x.device)
    dist.all_reduce(bounds, op=dist.ReduceOp.MAX)
    rows, numel, fewest, least = bounds.tolist()
    if (rows, numel) != (-fewest, -least):
        raise ValueError(
            f"gathering over ranks needs as many rows on each: this rank has {tuple(x.shape)}, "
            f"the ranks have {-fewest} to {rows} rows and {-least} to {numel} numbers"
        )
    _MET.add((tuple(x.shape), x.device))
