"""Pieces of tensors in the files of any number of ranks, read in any other cut."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.pretrain.checkpoint.state_files import STATE, StateFiles, rank_file, write_shards, write_state


def write(folder: Path, tensors: dict[str, torch.Tensor], cuts: dict[str, list[int]], ranks: int) -> None:
    """Cut each tensor at `cuts` and deal the shards to the ranks by turns."""
    dealt: list[tuple[dict, dict]] = [({}, {}) for _ in range(ranks)]
    for name, tensor in tensors.items():
        edges = [0, *sorted(cut % (len(tensor) + 1) for cut in cuts[name]), len(tensor)]
        edges = edges[: ranks + 1] if len(edges) <= ranks + 1 else [*edges[:ranks], len(tensor)]
        for rank, (start, stop) in enumerate(itertools.pairwise(edges)):
            if stop > start:
                dealt[rank][0][f"weight/{name}"], dealt[rank][1][f"weight/{name}"] = tensor[start:stop], start
    for rank, (shards, starts) in enumerate(dealt):
        write_shards(folder / rank_file(rank), shards, starts)
    shapes = {name: [len(tensor)] for name, tensor in tensors.items()}
    write_state(folder / STATE, {"world_size": ranks, "parameters": shapes, "optimiser": {}, "extra": {}})


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    ranks=st.integers(1, 5),
    data=st.data(),
)
def test_any_range_is_read_whatever_the_cut(tmp_path_factory, lengths, ranks, data):
    folder = tmp_path_factory.mktemp("state")
    tensors = {f"t.{i}": torch.randn(length) for i, length in enumerate(lengths)}
    cuts = {name: data.draw(st.lists(st.integers(0, 1000), max_size=ranks)) for name in tensors}
    write(folder, tensors, cuts, ranks)
    with StateFiles(folder) as files:
        assert all(torch.equal(value, tensors[name]) for name, value in files.weights().items())
        for name, tensor in tensors.items():
            start = data.draw(st.integers(0, len(tensor)))
            numel = data.draw(st.integers(0, len(tensor) - start))
            out = torch.full((numel,), torch.nan)
            files.read("weight", name, start, numel, out)
            assert torch.equal(out, tensor[start : start + numel])


def test_a_missing_part_and_a_damaged_file_are_named(tmp_path):
    write_shards(tmp_path / rank_file(0), {"weight/a": torch.ones(3)}, {"weight/a": 2})
    write_state(tmp_path / STATE, {"world_size": 1, "parameters": {"a": [5]}, "optimiser": {}, "extra": {}})
    with StateFiles(tmp_path) as files, pytest.raises(RuntimeError, match="lacks 2 of 5 elements of weight of a"):
        files.weights()
    (tmp_path / rank_file(0)).write_bytes(b"no tensors")
    with StateFiles(tmp_path) as files, pytest.raises(RuntimeError, match=r"rank-00000\.safetensors cannot be read"):
        files.weights()


def test_weights_are_read_without_the_optimiser(tmp_path):
    """Of 64 MiB of weights beside 128 MiB of moments, little more than 64 MiB come into memory."""
    code = f"""
from pathlib import Path
import torch
from scanfoundry.pretrain.checkpoint.state_files import *
def peak():  # getrusage's would be the parent's, as it was at the fork
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
folder = Path({str(tmp_path)!r})
n = 16 << 20
if not (folder / STATE).exists():
    kinds = [f"{{kind}}/w" for kind in ("weight", "exp_avg", "exp_avg_sq")]
    write_shards(folder / rank_file(0), {{key: torch.ones(n) for key in kinds}}, dict.fromkeys(kinds, 0))
    write_state(folder / STATE, {{"world_size": 1, "parameters": {{"w": [n]}}, "optimiser": {{}}, "extra": {{}}}})
else:
    before = peak()
    with StateFiles(folder) as files:
        assert files.weights()["w"].sum() == n
    print((peak() - before) / 1024)
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # the tensor, and the mapped pages that it was copied from
    assert 60 < float(done.stdout) < 150
