"""The files of a checkpoint: every rank's shards of weights and optimiser states, by name, free of the world size.

rank-00000.safetensors   1-D shards `weight/<name>`, `<state>/<name>`; rank 0 also whole tensors `buffer/<name>`;
                         `rng/<device>` of this rank. Its metadata has {key: start} of the shards.
state.json               world size, shapes of the parameters, the optimiser's scalars, what the caller adds

A shard is elements [start, start + its length) of the flattened tensor of its name, so whoever reads asks for the
elements it needs and never learns how many ranks wrote. Nothing is a pickle.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scanfoundry.backbones.models.tensor_file import Written, write_blocks, write_tensors
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

    Raises:
        RuntimeError: a tensor, or a part of one, is missing.
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
        """Copy elements [start, start + numel) of a flattened tensor into `out` (numel,)."""
        missing = numel
        for begin, length, file in self._places.get(f"{kind}/{name}", ()):
            low, high = max(begin, start), min(begin + length, start + numel)
            if low < high:
                out[low - start : high - start].copy_(file.get_slice(f"{kind}/{name}")[low - begin : high - begin])
                missing -= high - low
        if missing > 0:
            raise RuntimeError(f"{self.folder} lacks {missing} of {numel} elements of {kind} of {name}")

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
