import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from streams import digest, stream

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.crop import overlap, place
from scanfoundry.datasets.intensity import IntensityConfig, background, normalise
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig, Position
from scanfoundry.datasets.shards.format import unpack_bits
from scanfoundry.datasets.shards.reader import DataSet, ShardReader, read_index
from scanfoundry.datasets.workers.copy_ahead import CopyAhead
from scanfoundry.datasets.workers.pinning import Pages
from scanfoundry.datasets.workers.shared_buffers import SharedBuffers
from scanfoundry.datasets.workers.worker_pool import WorkerPool


def config(folder: Path, **changes: object) -> DataConfig:
    base = {
        "sources": [
            {"name": "mr", "path": folder / "mr", "flip_axes": [0, 2]},
            {"name": "xr", "path": folder / "xr", "flip_axes": [2]},
        ],
        "crop_2d": (24, 32),
        "crop_3d": (16, 12, 20),
        "batch_2d": 8,
        "batch_3d": 4,
        "workers": 0,
        "ring": 3,
        "window": 2,
    }
    return DataConfig(**(base | changes))


@pytest.fixture(scope="module")
def reference(data_sets: Path) -> list[str]:
    with CropLoader(config(data_sets), seed=3) as loader:
        return stream(loader, 40)


def test_a_crop_is_the_normalised_part_of_its_scan(data_sets: Path) -> None:
    settings = config(data_sets)
    with CropLoader(settings, seed=0) as loader:
        for _ in range(24):
            batch = next(loader)
            for position, draw in enumerate(loader.plan.draws(batch.step)):
                data, source = loader.plan.data[draw.source], settings.sources[draw.source]
                reader = ShardReader(data.folder, data.manifest.shards[draw.shard])
                entry = reader.entries[draw.sample]
                scan = normalise(reader.read(draw.sample), entry.modality, entry.stats, IntensityConfig())
                crop = tuple(batch.voxels.shape[2:])
                bitmap = unpack_bits(entry.foreground, entry.grid)
                where = place(draw.seed, entry.shape[1:], crop, bitmap, settings.foreground, source.flip_axes)
                of_scan, of_crop = overlap(where.start, entry.shape[1:], crop)
                expected = np.full(crop, background(entry.modality, entry.stats, IntensityConfig()), np.float32)
                valid = np.zeros(crop, bool)
                expected[of_crop], valid[of_crop] = scan[0][of_scan], True
                axes = [axis for axis in range(3) if where.flips[axis]]
                assert np.array_equal(batch.voxels[position, 0].numpy(), np.flip(expected, axes))
                assert np.array_equal(batch.valid[position, 0].numpy(), np.flip(valid, axes))
                assert (batch.keys[position], batch.modalities[position]) == (entry.key, entry.modality)
                assert batch.sources[position] == source.name


def test_batches_are_what_they_say(data_sets: Path) -> None:
    with CropLoader(config(data_sets, channels=3), seed=0) as loader:
        kinds = set()
        for step in range(12):
            batch = next(loader)
            kinds.add(batch.is_2d)
            size, shape = (8, (1, 24, 32)) if batch.is_2d else (4, (16, 12, 20))
            assert batch.voxels.shape == (size, 3, *shape)
            assert batch.valid.shape == (size, 1, *shape)
            assert (batch.voxels.dtype, batch.valid.dtype, batch.seeds.dtype) == (
                torch.float32,
                torch.bool,
                torch.int64,
            )
            assert batch.voxels.isfinite().all()
            assert (batch.seeds >= 0).all()
            assert (len(batch), batch.step) == (size, step)
            assert torch.equal(batch.to("cpu").voxels, batch.voxels)
        assert kinds == {True, False}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(data_sets: Path, reference: list[str], workers: int) -> None:
    with CropLoader(config(data_sets, workers=workers), seed=3) as loader:
        assert stream(loader, 40) == reference


def test_resume_from_any_step(data_sets: Path, reference: list[str]) -> None:
    states = []
    with CropLoader(config(data_sets), seed=3) as loader:
        for _ in range(40):
            states.append(loader.state())
            next(loader)
    assert states[0] == {"seed": 3, "epoch": 0, "position": 0}
    assert states[-1]["epoch"] > 0
    for step in (1, 7, 23, 39):
        with CropLoader(config(data_sets), seed=3, position=Position.of(states[step], 3)) as loader:
            assert loader.state() == states[step]
            assert stream(loader, 40 - step) == reference[step:]


@pytest.mark.parametrize("micro", [1, 2])
def test_copying_ahead_changes_neither_the_batches_nor_where_the_stream_goes_on(data_sets: Path, micro: int) -> None:
    states, plain, ahead = [], [], []
    with CropLoader(config(data_sets), seed=3, micro_batches=micro) as loader:
        for _ in range(12 * micro):
            states.append(loader.state())
            plain.append(digest(next(loader)))
    with CropLoader(config(data_sets, workers=1), seed=3, micro_batches=micro) as loader:
        loader._ahead_of_device = CopyAhead(loader.crops, torch.device("cpu"))  # as where the device is a GPU
        for number in range(12 * micro):
            assert loader.state() == states[number]
            ahead.append(digest(next(loader)))
            assert loader._ahead_of_device.waiting == 1
    assert ahead == plain
    with CropLoader(
        config(data_sets), seed=3, micro_batches=micro, position=Position.of(states[7 * micro], 3)
    ) as loader:
        loader._ahead_of_device = CopyAhead(loader.crops, torch.device("cpu"))
        assert [digest(next(loader)) for _ in range(5 * micro)] == plain[7 * micro :]


def test_what_the_host_knows_of_padding_is_what_the_batch_says(data_sets: Path) -> None:
    with CropLoader(config(data_sets), seed=0) as loader:
        found = set()
        for _ in range(12):
            batch = next(loader)
            whole = batch.valid.flatten(1).all(1).numpy()
            assert batch.complete is not None
            assert np.array_equal(batch.complete, whole)
            found |= set(whole.tolist())
        assert found == {True, False}


def test_buffers_are_pinned_until_their_memory_is_given_back() -> None:
    pinned: dict[int, int] = {}

    def register(address: int, size: int) -> int:
        assert address not in pinned
        pinned[address] = size
        return 0

    buffers = SharedBuffers(4096, 2, 3)
    buffers.pin(Pages(register, lambda address: pinned.pop(address) * 0))
    held = [buffers.lend(buffers.acquire()) for _ in range(2)]  # type: ignore[arg-type]
    assert sorted(pinned) == sorted(each.ctypes.data for each in held)
    buffers.grow()
    assert len(pinned) == 3
    assert set(pinned.values()) == {4096}
    buffers.close()
    assert (pinned, buffers.messages) == ({}, [])


def test_memory_that_cannot_be_pinned_is_told_once() -> None:
    buffers = SharedBuffers(2**20, 3, 3)
    buffers.pin(Pages(lambda address, size: 2, lambda address: pytest.fail("it was never pinned")))
    assert len(buffers.messages) == 1
    assert "1 MB cannot be pinned" in buffers.messages[0]
    buffers.close()


@pytest.mark.parametrize(("world", "micro"), [(2, 1), (1, 2), (2, 2)])
def test_ranks_and_micro_batches_make_up_the_global_batch(data_sets: Path, world: int, micro: int) -> None:
    with CropLoader(config(data_sets), seed=3) as loader:
        whole = [next(loader) for _ in range(3)]
    ranks = [CropLoader(config(data_sets, ring=6), 3, rank, world, micro) for rank in range(world)]
    for batch in whole:
        parts = [next(rank) for rank in ranks for _ in range(micro)]
        assert torch.equal(torch.cat([part.voxels for part in parts]), batch.voxels)
        assert torch.equal(torch.cat([part.seeds for part in parts]), batch.seeds)
        assert [key for part in parts for key in part.keys] == batch.keys
        assert {part.step for part in parts} == {batch.step}
        assert ranks[0].state()["position"] == batch.step + 1
    next(ranks[0])
    # A step of which only a part was handed out is not done.
    assert ranks[0].state()["position"] == (3 if micro > 1 else 4)
    for rank in ranks:
        rank.close()


def test_a_killed_worker_is_replaced_without_a_trace(data_sets: Path, reference: list[str]) -> None:
    with CropLoader(config(data_sets, workers=2), seed=3) as loader:
        seen = stream(loader, 10)
        for worker in list(loader._pool._held):
            os.kill(worker.process.pid, signal.SIGKILL)
            seen += stream(loader, 10)
        seen += stream(loader, 10)
        assert seen == reference
        assert loader.stats()["respawned_workers"] == 2


def test_workers_that_always_die_end_the_run(data_sets: Path) -> None:
    with CropLoader(config(data_sets, workers=1), seed=3) as loader:
        loader._pool._setup = None  # what a new worker is told; it cannot work with that
        os.kill(next(iter(loader._pool._held)).process.pid, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="in a worker process"):
            stream(loader, 20)


def test_death_after_death_names_the_shards(data_sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start = WorkerPool._start

    def start_and_kill(pool: WorkerPool) -> None:
        start(pool)
        list(pool._held)[-1].process.kill()

    monkeypatch.setattr(WorkerPool, "_start", start_and_kill)
    with (
        CropLoader(config(data_sets, workers=1), seed=3) as loader,
        pytest.raises(UserError, match=r"died 4 times at one batch \(exit status -9.*shard-0"),
    ):
        next(loader)


def test_batches_in_hand_are_never_overwritten(data_sets: Path, reference: list[str]) -> None:
    with CropLoader(config(data_sets, workers=2, ring=2), seed=3) as loader:
        kept = [next(loader) for _ in range(5)]
        voxels = [batch.voxels[0] for batch in kept]  # a view holds the buffer as well
        before = [each.clone() for each in voxels]
        assert [digest(batch) for batch in kept] == reference[:5]
        del kept
        assert stream(loader, 20) == reference[5:25]
        assert all(torch.equal(a, b) for a, b in zip(voxels, before, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(voxels, before, strict=True))  # also after close


def test_who_keeps_every_batch_is_told(data_sets: Path) -> None:
    with CropLoader(config(data_sets, ring=2), seed=3) as loader:
        kept = [loader.crops() for _ in range(8)]
        with pytest.raises(UserError, match="keeps 8 batches alive"):
            next(loader)
        del kept
        next(loader)


@pytest.fixture
def copied(data_sets: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(data_sets, tmp_path / "copy"))


def damage(folder: Path, shard: int, sample: int) -> str:
    data = DataSet(folder)
    record = data.manifest.shards[shard]
    entry = read_index(folder, record).samples[sample]
    path = folder / record.name
    content = bytearray(path.read_bytes())
    content[entry.offset + entry.length // 2] ^= 1
    path.write_bytes(content)
    return entry.key


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_scan_is_replaced_and_counted(copied: Path, reference: list[str], workers: int) -> None:
    key = damage(copied / "xr", 0, 1)
    following = read_index(copied / "xr", DataSet(copied / "xr").manifest.shards[0]).samples[2].key
    seen, changed = [], []
    with (
        CropLoader(config(copied, workers=workers, bad_sample_ceiling=0.05), seed=3) as loader,
        CropLoader(config(copied, bad_sample_ceiling=0.05), seed=3) as again,
    ):
        for number in range(40):
            batch = next(loader)
            seen.append(digest(batch))
            assert key not in batch.keys
            if seen[-1] != reference[number]:
                changed.append(following in batch.keys)
        assert loader.stats()["bad_samples"] == 1
        assert changed
        assert all(changed)
        assert stream(again, 40) == seen


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_shard_that_breaks_before_it_is_read_ends_the_run(copied: Path, workers: int, how: str) -> None:
    shard = copied / "mr" / DataSet(copied / "mr").manifest.shards[0].name
    with CropLoader(config(copied, workers=workers, bad_sample_ceiling=0.02), seed=3) as loader:
        os.truncate(shard, 1000) if how == "cut" else shard.unlink()
        with pytest.raises(UserError, match=f"bad_sample_ceiling 0.02 allows; the last: shard {shard}"):
            stream(loader, 100)
        assert loader.stats()["bad_samples"] >= 2
    with pytest.raises(UserError, match=shard.name):
        CropLoader(config(copied), seed=3)


def test_a_source_of_which_nothing_can_be_read_ends_the_run(copied: Path) -> None:
    """Whatever the ceiling: there is no scan to take in the place of another."""
    with CropLoader(config(copied, workers=0, bad_sample_ceiling=1.0), seed=3) as loader:
        for shard in (copied / "mr").glob("*.tar"):
            shard.unlink()
        with pytest.raises(UserError, match="source 'mr': none of 24 scans of one kind can be read; the last: shard"):
            stream(loader, 100)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_is_deleted_while_it_is_open_is_read_to_the_end(
    copied: Path, workers: int, reference: list[str]
) -> None:
    with CropLoader(config(copied, workers=workers), seed=3) as loader:
        seen = stream(loader, 20)  # every shard has been opened
        for shard in copied.glob("*/*.tar"):
            shard.unlink()
        assert seen + stream(loader, 20) == reference


def test_a_worker_that_hangs_ends_the_run_in_time(data_sets: Path) -> None:
    with CropLoader(config(data_sets, workers=1, ring=2, timeout_s=8), seed=3) as loader:
        next(loader)
        victim = next(iter(loader._pool._held)).process
        os.kill(victim.pid, signal.SIGSTOP)  # as one that waits for a network disk
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no worker has filled a batch for 8 s .* one reads .*shard-\d+\.tar"):
            stream(loader, 20)
        assert time.monotonic() - began < 30
        os.kill(victim.pid, signal.SIGCONT)


def test_sizes_that_cannot_be_divided(data_sets: Path) -> None:
    with pytest.raises(UserError, match=r"batch_2d 8 cannot be divided among 3 ranks x 1"):
        CropLoader(config(data_sets), 0, 0, world_size=3)


def test_lack_of_memory_is_one_line(data_sets: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from scanfoundry.datasets.workers.shared_buffers import SharedBuffers\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "SharedBuffers(1 << 24, 2, 4)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "UserError: no shared memory for 1 batches of 16 MB" in process.stderr


def test_workers_end_with_a_killed_parent_and_ignore_its_signals(data_sets: Path) -> None:
    code = (
        "import sys, time; from scanfoundry.datasets.loader import CropLoader\n"
        "from scanfoundry.datasets.plan import DataConfig\n"
        "loader = CropLoader(DataConfig.model_validate_json(sys.argv[1]), 3)\n"
        "next(loader)\n"
        "print(*[worker.process.pid for worker in loader._pool._held], flush=True)\n"
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", code, config(data_sets, workers=2).model_dump_json()]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    workers = [int(word) for word in parent.stdout.readline().split()]
    for worker in workers:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
            os.kill(worker, number)
    assert len([worker for worker in workers if Path(f"/proc/{worker}").exists()]) == 2
    parent.kill()
    errors = parent.communicate()[1]  # ends when the workers have closed their stderr
    assert errors == ""
    assert not any(Path(f"/proc/{worker}/exe").exists() for worker in workers)


def test_workers_do_not_import_torch() -> None:
    code = "import sys, scanfoundry.datasets.workers.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
