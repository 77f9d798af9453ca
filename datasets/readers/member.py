"""One array in NPY form, out of a file or a member of an NPZ, entry by entry."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from scanfoundry.datasets.readers.guard import check_expansion, check_ratio
from scanfoundry.datasets.readers.scan import ReadError

_CHUNK = 2**20


class ArchiveMember:
    """The head of an array, read; its entries still in the stream.

    Raises:
        ReadError: the array holds objects, or its length is not what its head declares.
    """

    def __init__(self, stream: IO[bytes], size: int, stored: int) -> None:
        version = npy.read_magic(stream)
        if version not in ((1, 0), (2, 0)):
            raise ReadError(f"NPY of version {version} is not supported")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, self._fortran, self.dtype = read(stream)
        if self.dtype.hasobject or self.dtype.names is not None:
            raise ReadError("holds python objects or records, not numbers")
        declared = math.prod(self.shape) * self.dtype.itemsize
        if declared != size - stream.tell():
            raise ReadError(f"its head declares {declared} bytes of values, it holds {size - stream.tell()}")
        check_ratio(declared, stored)
        self._stream, self._stored = stream, stored

    def whole(self) -> NDArray:
        """The array.

        Raises:
            ReadError: it is too large to be in memory.
        """
        check_expansion(math.prod(self.shape) * self.dtype.itemsize, self._stored)
        return self._next(self.shape)

    def entries(self) -> Iterator[NDArray]:
        """The entries along the first axis, one in memory at a time (all, where the array is in Fortran's order)."""
        if self._fortran:
            yield from self.whole()
            return
        shape = self.shape[1:]
        check_expansion(math.prod(shape) * self.dtype.itemsize, math.prod(shape) * self.dtype.itemsize)
        for _ in range(self.shape[0]):
            yield self._next(shape)

    def _next(self, shape: tuple[int, ...]) -> NDArray:
        size = math.prod(shape) * self.dtype.itemsize
        if size <= 0:
            raise ReadError(f"empty: shape {shape}")
        content = bytearray(size)
        view, filled = memoryview(content), 0
        while filled < size:
            step = self._stream.readinto(view[filled : filled + _CHUNK])  # type: ignore[attr-defined]
            if not step:
                raise ReadError("cut short")
            filled += step
        return np.frombuffer(content, self.dtype).reshape(shape, order="F" if self._fortran else "C")


def open_file(path: Path, stream: IO[bytes]) -> ArchiveMember:
    """The array of an NPY file that is open as `stream`."""
    size = path.stat().st_size
    return ArchiveMember(stream, size, size)


def open_member(archive: zipfile.ZipFile, name: str) -> ArchiveMember:
    """The array `name` of an NPZ."""
    info = archive.getinfo(f"{name}.npy")
    return ArchiveMember(archive.open(info), info.file_size, info.compress_size)


def check_not_packed(archive: zipfile.ZipFile, size: int) -> None:
    """ReadError, before anything is unpacked, where a member or all of them blow up beyond what images do.

    size: of the archive in bytes. Members may lie on one another, each of them small: their sum tells.
    """
    for info in archive.infolist():
        check_ratio(info.file_size, min(size, info.compress_size))
    check_ratio(sum(info.file_size for info in archive.infolist()), size)


def check_member(archive: zipfile.ZipFile, name: str) -> None:
    """Reads the member once through: zipfile compares the checksum at its end, when entries would long be given out."""
    with archive.open(f"{name}.npy") as stream:
        while stream.read(_CHUNK):
            pass
