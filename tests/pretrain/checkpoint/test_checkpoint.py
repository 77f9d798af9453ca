"""A checkpoint is whole or not there; broken ones are passed over."""

import shutil
import zlib
from pathlib import Path

import checkpoints
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.configs.errors import UserError
from scanfoundry.pretrain.checkpoint import checkpoint
from scanfoundry.pretrain.distributed.world import World

ALONE = World(0, 1, 0, 1, torch.device("cpu"))


def write(content: bytes):
    def writer(folder: Path) -> list[Written]:
        (folder / "rank-00000.safetensors").write_bytes(content)
        return [Written("rank-00000.safetensors", len(content), zlib.crc32(content))]

    return writer


def save(root: Path, step: int, content: bytes = b"weights" * 100, keep: int = 3) -> Path:
    root.mkdir(exist_ok=True)
    return checkpoints.save(root, step, {"seed": 7, "epoch": 0, "position": step}, write(content), keep)


def test_the_newest_is_found_and_old_ones_go(tmp_path):
    for step in (1, 2, 30, 4):
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path, pytest.fail, ALONE) == tmp_path / "step-00000030"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004", "step-00000030"]
    step, stream = checkpoint.position(tmp_path / "step-00000030", 7)
    assert (step, stream.position) == (30, 30)


def test_an_empty_folder_has_none(tmp_path):
    assert checkpoint.newest(tmp_path / "absent", pytest.fail, ALONE) is None


@settings(max_examples=25, deadline=None)
@given(where=st.integers(0, 10_000), how=st.sampled_from(["flip", "cut", "delete", "seal"]))
def test_any_damage_is_noticed_and_the_one_before_is_taken(tmp_path_factory, where: int, how: str):
    root = tmp_path_factory.mktemp("run")
    save(root, 1)
    folder = save(root, 2)
    victim = folder / ("complete.json" if how == "seal" else "rank-00000.safetensors")
    content = bytearray(victim.read_bytes())
    if how == "delete":
        victim.unlink()
    elif how == "flip":
        content[where % len(content)] ^= 0xFF
        victim.write_bytes(content)
    else:
        victim.write_bytes(content[: where % len(content)])
    said: list[str] = []
    assert checkpoint.newest(root, said.append, ALONE) == root / "step-00000001"
    assert len(said) == 1
    assert "broken" in said[0]


def test_all_broken_is_the_users_to_decide(tmp_path):
    (save(tmp_path, 1) / "complete.json").unlink()
    with pytest.raises(UserError, match="every checkpoint"):
        checkpoint.newest(tmp_path, lambda text: None, ALONE)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
def test_a_failed_write_leaves_the_older_one(tmp_path, error):
    save(tmp_path, 1)

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise error

    with pytest.raises(UserError, match=f"cannot write checkpoint .*: {error.strerror}"):
        checkpoints.save(tmp_path, 2, {}, fail, 3)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def test_leftovers_of_a_killed_writer_are_cleaned(tmp_path):
    (tmp_path / ".tmp-step-00000009").mkdir()
    save(tmp_path, 1)
    checkpoint.clean(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


@pytest.mark.parametrize("how", ["replaced", "a file replaced", "removed", "written to"])
def test_a_checkpoint_that_changes_while_it_is_read_is_told(tmp_path, how: str):
    folder = save(tmp_path, 1)
    with checkpoint.unchanged(folder):
        assert checkpoint.verified_step(folder) == 1
    with pytest.raises(UserError, match="was replaced or removed while it was read"), checkpoint.unchanged(folder):
        change(folder, how)


def change(folder: Path, how: str) -> None:
    """What a run does to its checkpoints, and what others do."""
    file = folder / "rank-00000.safetensors"
    assert checkpoint.verified_step(folder) == 1
    if how == "replaced":
        save(folder.parent, 1, b"others " * 100)
    elif how == "a file replaced":
        (folder.parent / "other").write_bytes(b"others " * 100)
        (folder.parent / "other").replace(file)
    elif how == "removed":
        shutil.rmtree(folder)
        file.read_bytes()
    else:
        file.write_bytes(b"others " * 200)
