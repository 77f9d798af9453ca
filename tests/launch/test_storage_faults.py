"""Storage that is away for a while: told apart from mistakes, and a reason to start again once a checkpoint exists."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.datasets.shards.reader import DataSet
from scanfoundry.datasets.storage.address import Away, Unavailable
from scanfoundry.datasets.storage.faults import StorageFault, is_storage_fault
from scanfoundry.launch.cluster import rank_main
from scanfoundry.launch.cluster.job_folder import EXIT, JobFolder
from scanfoundry.launch.cluster.rank_main import RankInfo, run_rank


def stale() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/data/shard.tar")


def mistake() -> UserError:
    return UserError("the loss was not finite in 10 steps in a row")


def vanished() -> UserError:
    try:
        DataSet("/nowhere/at/all")
    except UserError as error:
        return error
    raise AssertionError


def end_of(tmp_path: Path, monkeypatch, error: Exception) -> dict[str, str]:
    """What rank 0 of a life wrote that ended by an error."""

    def fail(*_: object) -> None:
        raise error

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(rank_main, "_pretrain", fail)
    monkeypatch.setattr(rank_main, "_exit", leave)
    monkeypatch.setattr(RankInfo, "export", lambda self, job: None)
    job = JobFolder(tmp_path / "jobs" / "one")
    job.path.mkdir(parents=True, exist_ok=True)
    with pytest.raises(SystemExit) as left:
        run_rank({"run_dir": str(tmp_path / "run")}, job, RankInfo(0, 1, 0, 1, "here", "12-0"))
    end = job.ends("12-0")[0]
    assert left.value.code == EXIT[end["kind"]]
    return end


@pytest.mark.parametrize(
    ("error", "before", "after"),
    [
        (vanished, "final", "unreachable"),
        (stale, "crashed", "unreachable"),
        (mistake, "final", "final"),
        (lambda: OSError(errno.EINVAL, "no"), "crashed", "crashed"),
    ],
)
def test_what_was_there_may_come_back_and_what_never_was_is_a_mistake(
    tmp_path: Path, monkeypatch, error: Callable[[], Exception], before: str, after: str
):
    (tmp_path / "run").mkdir()
    assert end_of(tmp_path, monkeypatch, error())["kind"] == before
    (tmp_path / "run" / "checkpoints" / "step-00000002").mkdir(parents=True)
    assert end_of(tmp_path, monkeypatch, error())["kind"] == after


def test_a_run_folder_that_is_away_too_is_no_mistake(tmp_path: Path, monkeypatch):
    assert end_of(tmp_path, monkeypatch, vanished())["kind"] == "unreachable"


def test_a_fault_is_found_behind_the_error_that_tells_it():
    assert is_storage_fault(vanished())
    assert is_storage_fault(Away("the server is away"))
    assert not is_storage_fault(Unavailable("its sha256 is not the manifest's"))
    assert not is_storage_fault(None)


@pytest.mark.parametrize("gone", [True, False])
def test_shards_that_vanish_while_a_run_reads_are_away_and_damaged_ones_are_not(
    tmp_path: Path, tiny_shards: dict[str, Path], gone: bool
):
    shutil.copytree(tiny_shards["us"], tmp_path / "us")
    config = DataConfig.model_validate({
        "sources": [{"name": "us", "path": str(tmp_path / "us")}], "crop_2d": [16, 16], "batch_2d": 4, "workers": 0,
    })  # fmt: skip
    with CropLoader(config, 0) as loader:
        for shard in (tmp_path / "us").glob("*.tar"):
            if gone:
                shard.unlink()
            else:
                shard.write_bytes(b"\0" * shard.stat().st_size)
        with pytest.raises(UserError, match="bad_sample_ceiling") as caught:
            next(loader)
    assert isinstance(caught.value, StorageFault) == gone
