"""Writing safetensors files without a copy of all tensors in memory, which the library's own writer makes."""

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from isal import isal_zlib
from torch import Tensor

DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
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
