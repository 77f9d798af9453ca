"""Tensors that every rank wants whole, read once for all: each rank reads its share of the files and hears the rest.

At ZeRO stage 0 that is the whole checkpoint: with 512 ranks every one of them would open 512 files and read them all.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scanfoundry.pretrain.checkpoint.state_files import StateFiles
from scanfoundry.pretrain.distributed.world import World, sum_over_ranks

BUCKET = 1 << 25  # elements that are exchanged at once


@dataclass(frozen=True)
class Wanted:
    """A parameter's weights (kind `weight`) or a state of the optimiser, and the flat tensor that they go into."""

    kind: str
    name: str
    out: Tensor


def read_together(files: StateFiles, wanted: list[Wanted], world: World) -> None:
    """Fill what all ranks want; every rank calls it with the same list.

    A rank puts the bits of what its files have into zeros, and the ranks add these up as integers: bit for bit what
    is in the files, since each element is in one of them.

    Raises:
        RuntimeError: on every rank, where elements are in no file.
    """
    if world.size == 1:
        for each in wanted:
            files.read(each.kind, each.name, 0, each.out.numel(), each.out)
        return
    share = range(world.rank, files.writers, world.size)
    found = torch.zeros(len(wanted), dtype=torch.int64)
    for bucket in _buckets(wanted):
        held = torch.zeros(sum(numel for _, _, numel in bucket))
        offset = 0
        for number, start, numel in bucket:
            each, part = wanted[number], held.narrow(0, offset, numel)
            found[number] += files.read_of(share, each.kind, each.name, start, numel, part)
            offset += numel
        everything = sum_over_ranks(held.view(torch.int32).to(world.device), world).view(torch.float32)
        for (number, start, numel), part in zip(bucket, everything.split([n for *_, n in bucket]), strict=True):
            wanted[number].out.narrow(0, start, numel).copy_(part)
    for each, count in zip(wanted, sum_over_ranks(found.to(world.device), world).tolist(), strict=True):
        if count != each.out.numel():
            missing = each.out.numel() - count
            raise RuntimeError(
                f"{files.folder} lacks {missing} of {each.out.numel()} elements of {each.kind} of {each.name}"
            )


def _buckets(wanted: list[Wanted]) -> Iterator[list[tuple[int, int, int]]]:
    """(number in the list, start, elements) of pieces that together have at most BUCKET elements."""
    bucket: list[tuple[int, int, int]] = []
    room = BUCKET
    for number, each in enumerate(wanted):
        start = 0
        while start < each.out.numel():
            numel = min(room, each.out.numel() - start)
            bucket.append((number, start, numel))
            start, room = start + numel, room - numel
            if room == 0:
                yield bucket
                bucket, room = [], BUCKET
    if bucket:
        yield bucket
