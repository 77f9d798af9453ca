"""The process group and the few collectives that the loop needs."""

import gc
import os
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from scanfoundry.pretrain.distributed.rendezvous import form_group

TIMEOUT_S = 900.0  # a collective that waits longer for a lost rank ends the process


@dataclass(frozen=True)
class World:
    """Who this process is among the processes of the run."""

    rank: int
    size: int
    local_rank: int
    local_size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0


ALONE = World(0, 1, 0, 1, torch.device("cpu"))  # for whoever reads what a run left, outside of any


def join(device: str = "auto", threads: int | None = None, timeout_s: float = TIMEOUT_S) -> World:
    """Read RANK, WORLD_SIZE, LOCAL_RANK (absent: one process), choose device and CPU threads, join the process group.

    DeepSpeed takes the group over as it finds it; calling twice is harmless.

    Args:
        timeout_s: how long a collective may wait.
    """
    os.environ.setdefault("RANK", "0")
    os.environ.setdefault("WORLD_SIZE", "1")
    os.environ.setdefault("LOCAL_RANK", "0")
    use_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    size = int(os.environ["WORLD_SIZE"])
    local_rank = int(os.environ["LOCAL_RANK"])
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1" if size == 1 else str(size)))
    if use_cuda:
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    else:
        torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // local_size))
    where = torch.device("cuda", torch.cuda.current_device()) if use_cuda else torch.device("cpu")
    rank = int(os.environ["RANK"])
    if not dist.is_initialized():
        form_group("nccl" if use_cuda else "gloo", rank, size, timedelta(seconds=timeout_s))
    return World(rank, size, local_rank, local_size, where)


def largest(number: int, world: World) -> int:
    """The largest `number` of any rank, on every rank."""
    if world.size == 1:
        return number
    value = torch.tensor(number, device=world.device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return int(value.item())


def sum_over_ranks(values: torch.Tensor, world: World) -> torch.Tensor:
    """The elementwise sum of a small detached tensor over the ranks; for logs, not for gradients."""
    if world.size > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def gather_objects(mine: Any, world: World) -> list[Any]:
    """Collect one small object of every rank, in the order of ranks, on every rank."""
    if world.size == 1:
        return [mine]
    everyone: list[Any] = [None] * world.size
    dist.all_gather_object(everyone, mine)
    return everyone


def barrier(world: World) -> None:
    """Wait until every rank is here."""
    if world.size > 1:
        dist.barrier()


def leave(world: World) -> None:
    """Leave the process group; the pause lets gloo's threads end, which otherwise may abort the interpreter's exit."""
    if dist.is_initialized():
        barrier(world)
        dist.destroy_process_group()
    gc.collect()
    sys.stdout.flush()
    sys.stderr.flush()
    if world.size > 1:
        time.sleep(0.5)
