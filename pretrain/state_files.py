"""The files of a checkpoint: every rank's pieces of weights and optimiser states, by name, free of the world size.

rank-00000.safetensors   1-D pieces `weight/<name>`, `<state>/<name>`; rank 0 also whole tensors `buffer/<name>`;
                         `rng/<device>` of this rank. Its metadata has {key: start} of the pieces.
state.json               world size, shapes of the parameters, the optimiser's scalars, what the caller adds

A piece is elements [start, start + its length) of the flattened tensor of its name, so whoever reads asks for the
elements it needs and never learns how many ranks wrote. Nothing is a pickle. safetensors' own writer copies all
tensors into memory first; this one streams them.
"""

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scanforge.pretrain.pieces import Piece

STATE = "state.json"
DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_CHUNK = 1 << 24  # elements that go through host memory at a time


@dataclass(frozen=True)
class Written:
    """A file that a rank has written and flushed to the disk."""

    name: str
    bytes: int
    crc32: int


def rank_file(rank: int) -> str:
    """Name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def write_tensors(path: Path, tensors: dict[str, Tensor], starts: dict[str, int]) -> Written:
    """Stream tensors, from any device, into a safetensors file; `starts` of pieces go into its metadata."""
    header: dict[str, Any] = {"__metadata__": {"starts": json.dumps(starts)}}
    end = 0
    for key, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[key] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        crc = 0
        for block in _blocks(struct.pack("<Q", len(text)) + text, tensors.values()):
            file.write(block)
            crc = isal_zlib.crc32(block, crc)
        file.flush()
        os.fsync(file.fileno())
    return Written(path.name, path.stat().st_size, crc)


def _blocks(head: bytes, tensors: Iterable[Tensor]) -> Iterable[Any]:
    yield head
    for tensor in tensors:
        for part in tensor.detach().reshape(-1).split(_CHUNK):
            yield memoryview(part.cpu().contiguous().view(torch.uint8).numpy())


def write_state(path: Path, state: dict[str, Any]) -> Written:
    """Write `state.json`."""
    content = json.dumps(state).encode()
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return Written(path.name, len(content), isal_zlib.crc32(content))


class StateFiles:
    """The files of one checkpoint, for reading any range of any tensor of any rank's; a context manager.

    Raises RuntimeError where a tensor, or a part of one, is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state: dict[str, Any] = json.loads((folder / STATE).read_text())
        self._files = [_open(folder / rank_file(rank)) for rank in range(self.state["world_size"])]
        self._places: dict[str, list[tuple[int, int, Any]]] = {}
        for file in self._files:
            starts = json.loads(file.metadata()["starts"])
            for key, start in starts.items():
                self._places.setdefault(key, []).append((start, file.get_slice(key).get_shape()[0], file))

    def kinds(self) -> list[str]:
        """The optimiser's states, such as exp_avg; `weight` is not among them."""
        return sorted({key.split("/", 1)[0] for key in self._places} - {"weight"})

    def read(self, kind: str, name: str, start: int, numel: int, out: Tensor) -> None:
        """Elements [start, start + numel) of a flattened tensor into `out` (numel,)."""
        missing = numel
        for begin, length, file in self._places.get(f"{kind}/{name}", ()):
            low, high = max(begin, start), min(begin + length, start + numel)
            if low < high:
                out[low - start : high - start].copy_(file.get_slice(f"{kind}/{name}")[low - begin : high - begin])
                missing -= high - low
        if missing > 0:
            raise RuntimeError(f"{self.folder} lacks {missing} of {numel} elements of {kind} of {name}")

    def piece(self, kind: str, piece: Piece, out: Tensor) -> None:
        """A piece (numel,) into `out`."""
        self.read(kind, piece.name, piece.start, piece.numel, out)

    def weights(self, prefix: str = "") -> dict[str, Tensor]:
        """Parameters and buffers whose name begins with `prefix`, whole, fp32 parameters on the CPU.

        Nothing of the optimiser is read.
        """
        found: dict[str, Tensor] = {}
        for name, shape in self.state["parameters"].items():
            if name.startswith(prefix):
                found[name] = torch.empty(shape)
                self.read("weight", name, 0, found[name].numel(), found[name].view(-1))
        return found | {name: value for name, value in self.buffers().items() if name.startswith(prefix)}

    def buffers(self) -> dict[str, Tensor]:
        """The buffers as rank 0 had them."""
        keys = [key for key in self._files[0].keys() if key.startswith("buffer/")]  # noqa: SIM118 - not a dict
        return {key.removeprefix("buffer/"): self._files[0].get_tensor(key) for key in keys}

    def rng(self, rank: int) -> dict[str, Tensor]:
        """States of random generators by device; at another world size no rank has one of its own to go back to."""
        file = self._files[rank % len(self._files)]
        keys = [key for key in file.keys() if key.startswith("rng/")]  # noqa: SIM118 - not a dict
        return {key.removeprefix("rng/"): file.get_tensor(key) for key in keys}

    def __enter__(self) -> "StateFiles":
        return self

    def __exit__(self, *error: object) -> None:
        self._places.clear()
        self._files.clear()


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt").__enter__()
    except (OSError, SafetensorError) as error:
        raise RuntimeError(f"{path} cannot be read: {error}") from error
