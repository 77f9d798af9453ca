"""Files that lie, run code or are broken are refused in one line; nothing in them is ever executed."""

import argparse
import io
import os
import pickle
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from scanfoundry.backbones.foreign.safe import ALLOWED, read_foreign
from scanfoundry.configs.errors import UserError

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(2, dtype=torch.float16)}


class Evil:
    """Writes a file where it is unpickled by the ordinary unpickler."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


def refused(path: Path, message: str) -> str:
    with pytest.raises(UserError, match=message) as error:
        read_foreign(path)
    text = str(error.value)
    assert text.startswith(str(path))
    assert "\n" not in text
    return text


def test_tensors_records_and_scalars_are_read(tmp_path):
    content = {
        "weights": TENSORS,
        "curves": ([np.float64(0.5), np.float32(0.25)], np.int64(3)),
        "args": argparse.Namespace(lr=0.1),
        "bytes": b"\x00\xff",
        "epoch": 3,
    }
    torch.save(content, tmp_path / "a.pth")
    found = read_foreign(tmp_path / "a.pth")
    torch.testing.assert_close(found["weights"], TENSORS)
    assert found["curves"] == content["curves"]
    assert type(found["curves"][1]) is np.int64
    assert found["args"] == content["args"]
    assert found["bytes"] == content["bytes"]
    save_file(TENSORS, tmp_path / "a.safetensors")
    torch.testing.assert_close(read_foreign(tmp_path / "a.safetensors"), TENSORS)


def test_the_content_decides_not_the_name(tmp_path):
    save_file(TENSORS, tmp_path / "a.pth")
    torch.save(TENSORS, tmp_path / "a.bin")
    for name in ("a.pth", "a.bin"):
        torch.testing.assert_close(read_foreign(tmp_path / name), TENSORS)
    (tmp_path / "a.bin").rename(tmp_path / "a.safetensors")
    refused(tmp_path / "a.safetensors", "rename it to a.pth")


def test_a_file_that_would_run_code_is_refused_by_name_and_runs_nothing(tmp_path):
    mark, path = tmp_path / "was-here", tmp_path / "evil.pth"
    torch.save({"state_dict": TENSORS, "extra": Evil(mark)}, path)
    torch.load(path, weights_only=False)
    assert mark.exists()  # the file does do harm where it is opened carelessly
    mark.unlink()
    refused(path, r"would run (posix|nt)\.system")
    assert not mark.exists()


@pytest.mark.parametrize("name", ["builtins.eval", "builtins.getattr", "torch.serialization.load", "runpy.run_path"])
def test_names_outside_the_list_are_refused(tmp_path, name):
    module, function = name.rsplit(".", 1)
    payload = f"c{module}\n{function}\n(X\x01\x00\x00\x001tR.".encode()
    refused(torch_file(tmp_path / "a.pth", b"\x80\x02" + payload), re.escape(name))


def test_opcodes_that_hide_their_names_are_refused(tmp_path):
    mark = tmp_path / "was-here"
    pickled = pickle.dumps(Evil(mark), protocol=4)  # names pushed as strings, then STACK_GLOBAL
    refused(torch_file(tmp_path / "a.pth", pickled), "no plain torch.save file")
    assert not mark.exists()


def torch_file(path: Path, data: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return path


def test_nothing_that_is_allowed_can_reach_files_or_code():
    assert set(ALLOWED) == {
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.dtype",
        "_codecs.encode",
        "argparse.Namespace",
    }


def test_old_torch_files_and_bare_pickles_are_refused_unread(tmp_path):
    mark = tmp_path / "was-here"
    torch.save({"a": Evil(mark)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "plans.pkl").write_bytes(pickle.dumps(Evil(mark)))
    for name in ("old.pth", "plans.pkl"):
        refused(tmp_path / name, "before torch 1.6")
    assert not mark.exists()


@pytest.mark.parametrize("keep", [0.001, 0.5, 0.999])
def test_truncated_files_are_refused(tmp_path, keep):
    torch.save({"a": torch.randn(300, 300)}, tmp_path / "a.pth")
    save_file({"a": torch.randn(300, 300)}, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: int(len(whole) * keep)])
        refused(tmp_path / name, "truncated|damaged")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "web page"),
        (b"\n  <html lang='en'>quota exceeded", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:f440\n", "git-lfs pointer"),
        (b"not weights at all, only text", "neither a safetensors nor a torch file"),
        (b"\x93NUMPY\x01\x00", "neither a safetensors nor a torch file"),
    ],
)
def test_downloads_that_went_wrong_say_what_they_are(tmp_path, content, message):
    (tmp_path / "weights.pth").write_bytes(content)
    refused(tmp_path / "weights.pth", message)


def test_other_archives_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "notes.zip", "w") as archive:
        archive.writestr("weights.pth", b"x")
    refused(tmp_path / "notes.zip", "no torch file")
    torch.save(TENSORS, tmp_path / "a.pth")
    with zipfile.ZipFile(tmp_path / "a.pth") as old, zipfile.ZipFile(tmp_path / "small.pth", "w", 8) as new:
        for info in old.infolist():
            new.writestr(info.filename, old.read(info))
    refused(tmp_path / "small.pth", "compressed archive")
    scripted = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), scripted)
    (tmp_path / "script.pt").write_bytes(scripted.getvalue())
    with pytest.raises(UserError):
        read_foreign(tmp_path / "script.pt")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.pth", tmp_path):
        refused(path, "cannot be read")
