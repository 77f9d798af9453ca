"""A checkpoint beside the training: one at a time, its errors told on all ranks, nothing of it in a collective."""

import errno
import json
import threading
import time
import zlib
from pathlib import Path

import pytest
import torch

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.checkpoint import background
from scanfoundry.pretrain.checkpoint.background import CheckpointWriter
from scanfoundry.pretrain.checkpoint.host_memory import HostMemory
from scanfoundry.pretrain.distributed.world import ALONE

STREAM = {"seed": 7, "epoch": 0, "position": 1}


class Disk:
    """Writes a file once it is let: `go`; or fails."""

    def __init__(self, problem: Exception | None = None, at_once: bool = True) -> None:
        self.go, self.problem = threading.Event(), problem
        if at_once:
            self.go.set()

    def write(self, folder: Path) -> list[Written]:
        (folder / "half").write_bytes(b"x")
        assert self.go.wait(30)
        if self.problem is not None:
            raise self.problem
        (folder / "half").rename(folder / "whole")
        return [Written("whole", 1, zlib.crc32(b"x"))]


def writer(root: Path, said: list[str] | None = None) -> CheckpointWriter:
    return CheckpointWriter(root, 2, ALONE, (said if said is not None else []).append)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_the_training_goes_on_while_it_is_written(tmp_path):
    disk, released = Disk(at_once=False), []
    with writer(tmp_path) as one:
        one.begin(1, STREAM, disk.write, released.append)
        for _ in range(3):
            one.look()
        assert names(tmp_path) == [".tmp-step-00000001"]
        assert one.saved is None
        disk.go.set()
        one.wait()
        assert names(tmp_path) == ["step-00000001"]
        assert one.saved == tmp_path / "step-00000001"
        assert released == [one.saved]
    assert json.loads((tmp_path / "step-00000001" / "complete.json").read_text())["step"] == 1


def test_a_second_one_waits_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(background, "QUIET_S", 0.05)
    said: list[str] = []
    first, second = Disk(at_once=False), Disk()
    with writer(tmp_path, said) as one:
        one.begin(2, STREAM, first.write)
        threading.Timer(0.4, first.go.set).start()
        one.wait(4)
        one.begin(4, STREAM, second.write)
        one.wait()  # the end of a run has no step that waits
    assert said == [
        "step 4: waiting for the checkpoint of step 2, which is still being written; "
        "a larger checkpoint_every or a faster disk avoids it"
    ]
    assert names(tmp_path) == ["step-00000002", "step-00000004"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.ESTALE])
def test_what_the_system_refuses_ends_the_run_and_keeps_the_checkpoint_before(tmp_path, number: int):
    with writer(tmp_path) as one:
        one.begin(1, STREAM, Disk().write)
        one.wait()
        error = OSError(number, "what the system says")
        one.begin(2, STREAM, Disk(error).write)
        with pytest.raises(UserError, match=r"cannot write checkpoint .*step-00000002: what the system says; earlier"):
            until_it_ends(one)
    assert names(tmp_path) == ["step-00000001"]


def until_it_ends(one: CheckpointWriter) -> None:
    for _ in range(1000):
        one.look()
        time.sleep(0.01)
    pytest.fail("nothing was raised")


def test_what_a_release_meets_is_raised_as_it_is(tmp_path):
    def release(saved: Path) -> None:
        raise OSError(errno.EIO, "what the system says", "some/file")

    with writer(tmp_path) as one:
        one.begin(1, STREAM, Disk().write, release)
        with pytest.raises(OSError, match="what the system says: 'some/file'") as found:
            until_it_ends(one)
    assert found.value.errno == errno.EIO
    assert names(tmp_path) == ["step-00000001"]


def interrupted(root: Path, disk: Disk, error: BaseException | None, released: list[Path]) -> None:
    """A training that begins a checkpoint and then fails, or waits for it."""
    with writer(root) as one:
        one.begin(1, STREAM, disk.write, released.append)
        if error is not None:
            raise error
        one.wait()


def test_a_mistake_in_the_code_is_no_full_disk(tmp_path):
    with pytest.raises(ZeroDivisionError):
        interrupted(tmp_path, Disk(ZeroDivisionError()), None, [])


def test_an_error_of_the_training_waits_for_what_is_in_flight(tmp_path):
    disk, released = Disk(at_once=False), []
    threading.Timer(0.2, disk.go.set).start()
    with pytest.raises(ZeroDivisionError):
        interrupted(tmp_path, disk, ZeroDivisionError(), released)
    assert names(tmp_path) == ["step-00000001"]
    assert released == [tmp_path / "step-00000001"]


def test_a_second_interrupt_waits_for_nothing(tmp_path):
    disk = Disk(at_once=False)
    with pytest.raises(KeyboardInterrupt):
        interrupted(tmp_path, disk, KeyboardInterrupt(), [])
    assert names(tmp_path) == [".tmp-step-00000001"]
    disk.go.set()


def test_the_copy_keeps_what_the_next_step_changes():
    memory = HostMemory(torch.device("cpu"))
    given = {"a": torch.randn(5, 3), "b": torch.arange(7), "c": torch.tensor(2.5), "d": torch.randn(4, 6).t()}
    before = {key: value.clone() for key, value in given.items()}
    copies = memory.copy(given)
    for value in given.values():
        value.zero_()
    assert all(torch.equal(copies[key], before[key]) and copies[key].dtype == before[key].dtype for key in given)
    place = copies["a"].data_ptr()
    assert memory.copy({"a": before["a"]})["a"].data_ptr() == place  # the same memory again
    larger = memory.copy({"a": before["a"], "e": torch.ones(1000)})
    assert torch.equal(larger["a"], before["a"])
    assert larger["e"].sum() == 1000


RANKS = """
import errno, os, sys, threading, time, zlib
from pathlib import Path
import torch.distributed as dist
from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.checkpoint.background import CheckpointWriter
from scanfoundry.pretrain.distributed.world import join, largest
for name in ("all_reduce", "all_gather_object", "barrier"):
    def checked(*given, call=getattr(dist, name), **named):
        assert threading.current_thread() is threading.main_thread()
        return call(*given, **named)
    setattr(dist, name, checked)
world = join("cpu", 1)
root = Path(os.environ["TMP_PATH"]) / "checkpoints"
go = threading.Event()
def write(folder):
    if world.rank == 1:
        go.wait()
    name = f"file{world.rank}"
    (folder / name).write_bytes(b"x")
    return [Written(name, 1, zlib.crc32(b"x"))]
released = []
with CheckpointWriter(root, 2, world, print) as writer:
    writer.begin(1, {}, write, released.append)
    for _ in range(20):  # rank 0 has long written its file
        time.sleep(0.01)
        writer.look()
    assert os.listdir(root) == [".tmp-step-00000001"] and writer.saved is None
    largest(0, world)  # nobody goes on before all have looked
    go.set()
    writer.wait()
    assert os.listdir(root) == ["step-00000001"]
    assert released == ([writer.saved] if world.is_main else [])
    largest(0, world)
def fail(folder):
    if world.rank == 1:
        raise OSError(errno.ESTALE, "Stale file handle")
    return write(folder)
said = ""
try:
    with CheckpointWriter(root, 2, world, print) as writer:
        writer.begin(2, {}, fail)
        while True:
            time.sleep(0.01)
            writer.look()
except UserError as error:
    said = str(error)
assert "step-00000002: Stale file handle; earlier" in said, said
if world.is_main:
    assert os.listdir(root) == ["step-00000001"]
def refuse(saved):
    raise OSError(errno.EIO, "Input/output error", "model.safetensors")
try:
    with CheckpointWriter(root, 2, world, print) as writer:
        writer.release(1, root / "step-00000001", refuse)
        writer.wait()
except OSError as error:
    assert (error.errno, error.filename) == (errno.EIO, "model.safetensors")
else:
    raise SystemExit("nothing was raised")
print("done")
"""


def test_ranks_agree_in_their_main_threads(ranks):
    assert ranks(RANKS, 2) == "done\n"


OPENED = """
import json, os, sys
from pathlib import Path
import torch
from torch import nn
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
from scanfoundry.datasets.batch import Batch

class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(30, 30) for _ in range(6))
        self.register_buffer("seen", torch.zeros(3))
    def forward(self, batch):
        x = batch.voxels.flatten(1)
        for layer in self.layers:
            x = layer(x)
        return x.square().mean(), {}
    def after_step(self, progress):
        self.seen += 1

world = join("cpu", 1)
root = Path(os.environ["TMP_PATH"])
opened = set()
def note(event, given):
    if event == "open" and "rank-" in str(given[0]) and reading:
        opened.add(Path(given[0]).name)
reading = False
sys.addaudithook(note)
voxels = torch.randn(2, 1, 1, 5, 6, generator=torch.Generator().manual_seed(world.rank))
batch = Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), torch.zeros(2), ["a"] * 2, ["a"] * 2, ["a"] * 2, 0)
config = OptimiserConfig(lr=1e-2, warmup_steps=0).filled("convolutional")
for stage in (0, 2, 3):
    torch.manual_seed(0)
    engine = Engine(Objective(), config, EngineConfig(zero_stage=stage), world)
    engine.step([(batch,)], 1e-2)
    snapshot = engine.snapshot({"stage": stage})
    engine.step([(batch,)], 1e-2)  # what was copied does not follow
    snapshot.write(root / str(stage))
    barrier(world)
    straight = engine.step([(batch,)], 1e-2).loss
    opened, reading = set(), True
    engine.load(root / str(stage))
    reading = False
    engine.step([(batch,)], 1e-2)
    assert engine.step([(batch,)], 1e-2).loss == straight
    # its own, and the first for the buffers
    assert opened == {"rank-00000.safetensors", f"rank-{world.rank:05d}.safetensors"}, (stage, opened)
print("done")
"""


def test_resume_opens_what_a_rank_needs(ranks):
    assert ranks(OPENED, 3) == "done\n"
