"""Safetensors files in a stream: written without a copy of all tensors in memory, read in ranges of a tensor.

The library's own writer makes such a copy, and its reader maps the file: where a file system fails then, the process
is ended by SIGBUS; here it is an OSError.
"""

import json
import math
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from isal import isal_zlib
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_NAMES = {name: dtype for dtype, name in DTYPES.items()}
_CHUNK = 1 << 24  # elements that go through host memory at a time


@dataclass(frozen=True)
class Written:
    """A file that was written and flushed to the disk."""

    name: str
    bytes: int
    crc32: int


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> Written:
    """Stream tensors, from any device, into a safetensors file.

    Raises:
        OSError: the disk is full or read-only.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return write_blocks(path, _blocks(struct.pack("<Q", len(text)) + text, tensors.values()))


def write_blocks(path: Path, blocks: Iterable[Any]) -> Written:
    """Write bytes-like blocks and flush them to the disk."""
    crc, size = 0, 0
    with open(path, "wb") as file:
        for block in blocks:
            file.write(block)
            crc, size = isal_zlib.crc32(block, crc), size + len(block)
        file.flush()
        os.fsync(file.fileno())
    return Written(path.name, size, crc)


def _blocks(head: bytes, tensors: Iterable[Tensor]) -> Iterable[Any]:
    yield head
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).split(_CHUNK):
            yield memoryview(part.cpu().contiguous().view(torch.uint8).numpy())


class TensorFile:
    """Tensors of a safetensors file, flattened, to be read in ranges; `close` it.

    Args:
        path: of the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by `close`
        try:
            self._begin, self._header, self.metadata = _header_of(self._file)
        except BaseException:
            self._file.close()
            raise

    def names(self) -> list[str]:
        """The names of the tensors."""
        return list(self._header)

    def shape(self, key: str) -> list[int]:
        """The shape of a tensor."""
        return list(self._header[key]["shape"])

    def read(self, key: str, start: int, out: Tensor) -> None:
        """Copy elements [start, start + numel of `out`) of a flattened tensor into `out`, a contiguous tensor."""
        dtype = _NAMES[self._header[key]["dtype"]]
        place = self._begin + self._header[key]["data_offsets"][0] + start * dtype.itemsize
        flat = out.detach().view(-1)
        for part in flat.split(_CHUNK):
            direct = part.device.type == "cpu" and part.dtype == dtype
            target = part if direct else torch.empty(part.shape, dtype=dtype)
            self._fill(target.view(torch.uint8).numpy().data, place)
            if not direct:
                part.copy_(target)
            place += part.numel() * dtype.itemsize

    def tensor(self, key: str) -> Tensor:
        """A whole tensor, on the CPU."""
        out = torch.empty(self.shape(key), dtype=_NAMES[self._header[key]["dtype"]])
        self.read(key, 0, out)
        return out

    def _fill(self, view: memoryview, place: int) -> None:
        while len(view):
            count = os.preadv(self._file.fileno(), [view], place)
            if count == 0:
                raise ValueError(f"{self.path} ends before its tensors do")
            view, place = view[count:], place + count

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _header_of(file: IO[bytes]) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Where the tensors begin, what is said of each, and the metadata."""
    size = os.fstat(file.fileno()).st_size
    (length,) = struct.unpack("<Q", file.read(8).ljust(8, b"\xff"))
    if 8 + length > size:
        raise ValueError("its header is longer than the file")
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", {})
    for key, entry in header.items():
        low, high = entry["data_offsets"]
        if not 0 <= low <= high <= size - 8 - length:
            raise ValueError(f"its tensor {key} lies outside of the file")
        if high - low != math.prod(entry["shape"]) * _NAMES[entry["dtype"]].itemsize:
            raise ValueError(f"its tensor {key} is not of its shape")
    return 8 + length, header, metadata
