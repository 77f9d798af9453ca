"""The files of a checkpoint: every rank's shards of weights and optimiser states, by name, free of the world size.

rank-00000.safetensors   1-D shards `weight/<name>`, `<state>/<name>`; rank 0 also whole tensors `buffer/<name>`;
                         `rng/<device>` of this rank. Its metadata has {key: start} of the shards.
state.json               world size, shapes of the parameters, the optimiser's scalars and the kinds of its states,
                         what the caller adds

A shard is elements [start, start + its length) of the flattened tensor of its name, so whoever reads asks for the
elements it needs and never learns how many ranks wrote. Nothing is a pickle.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scanfoundry.backbones.models.tensor_file import TensorFile, Written, write_blocks, write_tensors
from scanfoundry.pretrain.checkpoint.parameter_shards import ParameterShard

STATE = "state.json"


def rank_file(rank: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}.safetensors"


def write_shards(path: Path, tensors: dict[str, Tensor], starts: dict[str, int]) -> Written:
    """Write a rank's file.

    Args:
        path: of the file.
        tensors: by key.
        starts: the first element of each shard among them, by the same keys.
    """
    return write_tensors(path, tensors, {"starts": json.dumps(starts)})


def write_state(path: Path, state: dict[str, Any]) -> Written:
    """Write `state.json`."""
    return write_blocks(path, [json.dumps(state).encode()])


class StateFiles:
    """The files of one checkpoint, for reading any range of any tensor of any rank's; a context manager.

    A file is opened when something is asked for that those that are open do not have.

    Args:
        folder: of the checkpoint.
        rank: of the reader, which tries the files of the same part of the world first.
        ranks: how many there are.

    Raises:
        RuntimeError: a file is no rank's file; a tensor, or a part of one, is missing.
        OSError: a file cannot be read.
    """

    def __init__(self, folder: Path, rank: int = 0, ranks: int = 1) -> None:
        self.folder = folder
        self.state: dict[str, Any] = json.loads((folder / STATE).read_text())
        self.writers: int = self.state["world_size"]
        here = (rank + 0.5) * self.writers / ranks
        self._closed = sorted(range(self.writers), key=lambda number: (abs(number + 0.5 - here), number))
        self._files: dict[int, TensorFile] = {}
        self._places: dict[str, list[tuple[int, int, TensorFile]]] = {}

    def kinds(self) -> list[str]:
        """The optimiser's states, such as exp_avg; `weight` is not among them."""
        if "kinds" in self.state:
            return list(self.state["kinds"])
        for number in range(self.writers):  # of a checkpoint from before they were written down
            self._file(number)
        return sorted({key.split("/", 1)[0] for key in self._places} - {"weight"})

    def read(self, kind: str, name: str, start: int, numel: int, out: Tensor) -> None:
        """Copy elements [start, start + numel) of a flattened tensor into `out` (numel,)."""
        missing = numel - self.read_of(self._files, kind, name, start, numel, out)
        while missing > 0 and self._closed:
            missing -= self.read_of([self._closed[0]], kind, name, start, numel, out)
        if missing > 0:
            raise RuntimeError(f"{self.folder} lacks {missing} of {numel} elements of {kind} of {name}")

    def read_of(self, writers: Iterable[int], kind: str, name: str, start: int, numel: int, out: Tensor) -> int:
        """`read` what the files of some writers have of it; gives how many elements those were."""
        copied, key, files = 0, f"{kind}/{name}", [self._file(number) for number in list(writers)]
        for begin, length, file in self._places.get(key, ()):
            low, high = max(begin, start), min(begin + length, start + numel)
            if low < high and file in files:
                file.read(key, low - begin, out[low - start : high - start])
                copied += high - low
        return copied

    def read_shard(self, kind: str, shard: ParameterShard, out: Tensor) -> None:
        """Copy a shard (numel,) into `out`."""
        self.read(kind, shard.name, shard.start, shard.numel, out)

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
        return self._group(0, "buffer/")

    def rng(self, rank: int) -> dict[str, Tensor]:
        """States of random generators by device; at another world size no rank has one of its own to go back to."""
        return self._group(rank % self.writers, "rng/")

    def _group(self, number: int, prefix: str) -> dict[str, Tensor]:
        file = self._file(number)
        return {key.removeprefix(prefix): file.tensor(key) for key in file.names() if key.startswith(prefix)}

    def _file(self, number: int) -> TensorFile:
        if number not in self._files:
            self._files[number] = file = _open(self.folder / rank_file(number))
            self._closed.remove(number)
            for key, start in json.loads(file.metadata["starts"]).items():
                self._places.setdefault(key, []).append((start, file.shape(key)[0], file))
        return self._files[number]

    def __enter__(self) -> "StateFiles":
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()
        self._places.clear()


def _open(path: Path) -> TensorFile:
    try:
        return TensorFile(path)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RuntimeError(f"{path} cannot be read: {error}") from error
