"""Batch buffers in memory that all processes share. A buffer is filled again when nobody holds its batch any more."""

import gc
import mmap
import os
import tempfile
import weakref
from collections import deque

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.geometry import Size3D
from scanfoundry.datasets.workers.pinning import Pages


class SharedBuffers:
    """`count` buffers of `size` bytes, up to `limit` where the training loop keeps batches.

    They are anonymous files (memfd), passed to workers as descriptors: they do not depend on the size of /dev/shm,
    which is 64 MB in a container, and nothing is left behind when all processes are killed. Their memory is reserved
    at once, so that lack of it is an error here and not a SIGBUS later.
    """

    def __init__(self, size: int, count: int, limit: int) -> None:
        self.size, self._limit = size, limit
        self.descriptors: list[int] = []
        self._maps: list[mmap.mmap] = []
        self._free: deque[int] = deque()
        self._pages: Pages | None = None
        self.messages: list[str] = []  # for people
        for _ in range(count):
            self._add()

    def _add(self) -> None:
        try:
            descriptor = _anonymous_file(self.size)
        except OSError as error:
            need = f"{len(self.descriptors) + 1} batches of {self.size / 2**20:.0f} MB"
            reason = f"no shared memory for {need}: {error.strerror}"
            raise UserError(f"{reason}; lower data.ring, the batch or the crop size") from error
        self._free.append(len(self.descriptors))
        self.descriptors.append(descriptor)
        self._maps.append(mmap.mmap(descriptor, self.size))
        self._pin(self._maps[-1])

    def pin(self, pages: Pages) -> None:
        """Pin the memory of all buffers, also of those to come, so that a device copies from it by itself."""
        self._pages = pages
        for memory in self._maps:
            self._pin(memory)

    def _pin(self, memory: mmap.mmap) -> None:
        if self._pages is None:
            return
        address = np.frombuffer(memory, np.uint8).ctypes.data
        if not self._pages.pin(address, self.size) and not self.messages:
            self.messages.append(
                f"a buffer of {self.size / 2**20:.0f} MB cannot be pinned, so that copies to the GPU wait for it; "
                "raise the limit of locked memory (ulimit -l), or lower data.ring"
            )

    def acquire(self) -> int | None:
        """A free buffer, or None."""
        return self._free.popleft() if self._free else None

    def grow(self) -> None:
        """Add a buffer, for when the training loop holds all of them. UserError at the limit."""
        gc.collect()  # a batch may hang in a reference cycle
        if self._free:
            return
        if len(self.descriptors) >= self._limit:
            raise UserError(
                f"the training loop keeps {len(self.descriptors)} batches alive: let them go, clone what must stay, "
                f"or raise data.ring"
            )
        self._add()

    def lend(self, number: int) -> NDArray[np.uint8]:
        """The bytes of a filled buffer; it is free again when this array and all its views are gone."""
        array = np.frombuffer(self._maps[number], np.uint8)
        weakref.finalize(array, self._free.append, number).atexit = False
        return array

    def view(self, number: int) -> NDArray[np.uint8]:
        """The bytes of a buffer for filling it in this process."""
        return np.frombuffer(self._maps[number], np.uint8)

    def close(self) -> None:
        """Batches that are still held stay valid; their memory goes with them."""
        if self._pages is not None:
            self._pages.unpin_all()
        while self.descriptors:
            os.close(self.descriptors.pop())
        self._maps.clear()


def _anonymous_file(size: int) -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("scanfoundry-batch")
    else:  # macOS
        with tempfile.TemporaryFile() as stream:
            descriptor = os.dup(stream.fileno())
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
        else:
            os.ftruncate(descriptor, size)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def buffer_size(crop: Size3D, batch: int, channels: int, excluded: bool = False, labelled: bool = False) -> int:
    """Bytes of the buffer for a batch of crops of any dtype of `DTYPES`.

    With room for `bits_of` or for `labels_of` where asked for, which lie at one place: drawn scans exclude nothing.
    """
    voxels = crop[0] * crop[1] * crop[2]
    return batch * (channels * voxels * 4 + (voxels if labelled else -(-voxels // 8) if excluded else 0))


# What crops are delivered in: the scan's own dtype, float32 where it is a wider one.
DTYPES = ("uint8", "int8", "uint16", "int16", "float32")


def view_of(buffer: NDArray[np.uint8], dtype: str, crop: Size3D, batch: int, channels: int) -> NDArray:
    """A view of a buffer: voxels (B, C, D, H, W) of `dtype`."""
    count = batch * channels * crop[0] * crop[1] * crop[2]
    return buffer[: count * np.dtype(dtype).itemsize].view(dtype).reshape(batch, channels, *crop)


def bits_of(buffer: NDArray[np.uint8], crop: Size3D, batch: int, channels: int) -> NDArray[np.uint8]:
    """A view of a buffer behind its voxels: (B, bytes), the packed bits of maps (D, H, W)."""
    start, size = buffer_size(crop, batch, channels), -(-crop[0] * crop[1] * crop[2] // 8)
    return buffer[start : start + batch * size].reshape(batch, size)


def labels_of(buffer: NDArray[np.uint8], crop: Size3D, batch: int, channels: int) -> NDArray[np.uint8]:
    """A view of a buffer behind its voxels: (B, D, H, W), the label maps of drawn scans."""
    start, size = buffer_size(crop, batch, channels), batch * crop[0] * crop[1] * crop[2]
    return buffer[start : start + size].reshape(batch, *crop)
