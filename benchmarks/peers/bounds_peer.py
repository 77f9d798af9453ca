"""What no loader here can beat: a DataLoader without work, and copying memory.

Variants: `empty`, a DataLoader whose data set hands out one crop made beforehand: the cost of the transport alone.
`memcpy1` and `memcpy2`: numpy copies random crops of volumes in memory into a batch buffer, in one process and in two
at once, handing nothing to anybody.
"""

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from peers.common import Request, endless_map, fit, load, random_generator, window
from torch.utils.data import Dataset

VARIANTS = ("empty", "memcpy1", "memcpy2")


def prepare(scans: list[Path], out: Path, variant: str) -> None:
    """Arrays, to be read into memory."""
    for number, path in enumerate(scans if variant != "empty" else scans[:1]):
        np.save(out / f"{number:05d}.npy", load(path))


class Empty(Dataset):
    """The same crops at every visit."""

    def __init__(self, request: Request) -> None:
        dtype = np.load(next(request.data.glob("*.npy")), mmap_mode="r").dtype
        crop = torch.from_numpy(np.zeros((1, *request.crop), dtype))
        self._crops = [crop] * request.per_visit

    def __len__(self) -> int:
        return 6

    def __getitem__(self, number: int) -> list[torch.Tensor]:
        return self._crops


def batches(request: Request, variant: str) -> Iterator[torch.Tensor]:
    """Endless batches of the empty DataLoader."""
    return endless_map(Empty(request), request)


class Copies:
    """Rounds of copying, in `processes`."""

    def __init__(self, request: Request, processes: int) -> None:
        scans = [np.load(path) for path in sorted(request.data.glob("*.npy"))]
        self._request, self._pipes = request, []
        for number in range(processes):
            here, there = multiprocessing.Pipe()
            arguments = (scans, request, there, number)
            multiprocessing.get_context("fork").Process(target=_answer, args=arguments, daemon=True).start()
            self._pipes.append(here)

    def round(self, seconds: float) -> tuple[int, float]:
        """See `protocol.Rounds`; crops of all processes, and their mean time."""
        for pipe in self._pipes:
            pipe.send(seconds)
        answers = [pipe.recv() for pipe in self._pipes]
        return sum(count for count, _ in answers), sum(taken for _, taken in answers) / len(answers)


def _answer(scans: list[np.ndarray], request: Request, pipe: Connection, salt: int) -> None:
    rng = random_generator(salt)
    buffer = np.zeros((request.batch, 1, *request.crop), scans[0].dtype)
    while True:
        seconds, count, taken, began = pipe.recv(), 0, 0.0, time.perf_counter()
        while taken < seconds:
            for place in range(0, request.batch, request.per_visit):
                scan = scans[rng.integers(len(scans))]
                for crop in range(place, place + request.per_visit):
                    buffer[crop, 0] = fit(scan[window(scan.shape, request.crop, rng)], request.crop)
            count += request.batch
            taken = time.perf_counter() - began
        pipe.send((count, taken))
