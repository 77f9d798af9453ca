"""Batches on a device, the next one copied while the one before it is computed on."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import NamedTuple

import torch

from scanfoundry.datasets.batch import Batch, Crops


class Copied(NamedTuple):
    """Crops of the ring, the same on the device, and what says when the copy is done; None where it already is."""

    host: Crops
    device: Crops
    done: torch.cuda.Event | None


class CopyAhead:
    """Hands out batches; the copy of the next one is under way, on a stream of its own, when a batch is handed out.

    What arrives is cast and normalised on the stream that computes. The host waits only for a copy that was begun one
    batch earlier, never for what is computed.

    Args:
        crops: gives the next crops in shared memory.
        device: where batches go. On the CPU nothing is copied ahead of time; it is the same order of calls.
    """

    def __init__(self, crops: Callable[[], Crops], device: torch.device) -> None:
        self._crops, self._device = crops, device
        self._stream = None if device.type == "cpu" else torch.cuda.Stream(device)
        self._next: Copied | None = None

    @property
    def waiting(self) -> int:
        """Batches that were taken and not handed out."""
        return 0 if self._next is None else 1

    def __call__(self) -> Batch:
        """The next batch, on the device."""
        current = self._next or self._copy()
        self._next = None  # not to be handed out again, should the next one fail
        self._next = self._copy()
        if self._stream is not None and current.done is not None:
            computing = torch.cuda.current_stream(self._device)
            computing.wait_event(current.done)
            for tensor in (current.device.voxels, current.device.excluded):
                if tensor is not None:
                    tensor.record_stream(computing)
            current.done.synchronize()  # the ring's memory is filled again once `current.host` is gone
        return current.device.to(self._device)

    def close(self) -> None:
        """Wait for the copy that is under way, before the ring's memory is given back."""
        if self._next is not None and self._next.done is not None:
            self._next.done.synchronize()
        self._next = None

    def _copy(self) -> Copied:
        host = self._crops()
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            moved = host.copied(self._device)
        return Copied(host, moved, None if self._stream is None else self._stream.record_event())
