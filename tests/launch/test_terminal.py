"""Names of files, texts of headers and cells of lists are printed, and never command the terminal or forge a line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanfoundry.configs.text import printable

# Colour, title and cursor of a terminal; a forged line; a turned direction; a byte that is no UTF-8.
EVIL = "a\x1b[31m\x1b]0;owned\x07\r\nscanfoundry: all is well\u202egnp\x9b2J"
ONE_LINE = EVIL.replace("\r\n", "")  # names in a list that go over several lines are refused: is a quote not closed?
NOT_UTF8 = os.fsdecode(b"b\xff\xfe\x1b[2J")


def image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (24, 30)).astype(np.uint8)).save(path, "PNG")


def scanfoundry(*words: str | Path) -> tuple[int, list[str]]:
    """Exit code and all lines that it prints; each is for the eye alone."""
    command = [str(Path(sys.executable).with_name("scanfoundry")), *map(str, words)]
    done = subprocess.run(command, capture_output=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = (done.stdout + done.stderr).decode()
    assert printable(said, lines=True) == said
    assert "\r" not in said
    return done.returncode, said.splitlines()


@pytest.fixture
def ward(tmp_path: Path) -> Path:
    image(tmp_path / "in" / f"{EVIL}.png", 1)
    image(tmp_path / "in" / f"{ONE_LINE}.png", 4)
    image(tmp_path / "in" / f"{NOT_UTF8}.png", 2)
    image(tmp_path / "in" / "plain.png", 3)
    (tmp_path / "in" / f"z{EVIL}.nii.gz").write_bytes(b"no NIfTI")
    (tmp_path / "in" / f"z{NOT_UTF8}.nii").write_bytes(b"no NIfTI")
    header = f'file,class,"note {EVIL}"\n'
    rows = [f'"{ONE_LINE}.png","{EVIL[:20]}",x', "plain.png,benign,y", f'"gone {ONE_LINE}.png",benign,z']
    (tmp_path / "list.csv").write_text(header + "\n".join(rows), encoding="utf-8", newline="")
    return tmp_path


def test_a_build_of_such_names(ward: Path) -> None:
    out = ward / "out \x1b[31m"
    words = ["data", "build", ward / "in", "--out", out, "--labels", ward / "list.csv", "--max-bad", "1"]
    code, lines = scanfoundry(*words, "--workers", "1")
    assert code == 0, lines
    assert not [line for line in lines if line.startswith("scanfoundry:")]
    assert any(r"note a\x1b[31m\x1b]0;owned\x07\r\n" in line for line in lines)
    listed = (out / "quarantine.jsonl").read_text(encoding="utf-8")
    assert printable(listed, lines=True) == listed
    paths = {json.loads(line)["path"] for line in listed.splitlines()}
    assert paths == {f"z{EVIL}.nii.gz", "zb\\xff\\xfe\x1b[2J.nii"}
    assert scanfoundry("data", "check", out)[0] == 0


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    for name in (EVIL, NOT_UTF8):
        (tmp_path / name).mkdir()
    for words in (
        ["data", "build", tmp_path / NOT_UTF8, "--out", tmp_path / "out"],
        ["data", "build", tmp_path / f"gone {EVIL}", "--out", tmp_path / "out"],
        ["data", "check", tmp_path / EVIL],
        ["models", "inspect", tmp_path / NOT_UTF8],
        ["models", "get", EVIL],
        ["finetune", tmp_path / f"{NOT_UTF8}.yaml"],
        ["predict", "--model", tmp_path / EVIL, "--input", tmp_path, "--out", tmp_path / "out"],
    ):
        code, (line,) = scanfoundry(*words)
        assert code in (1, 2)
        assert line.startswith("scanfoundry:")


def test_a_traceback_is_escaped_too(tmp_path: Path) -> None:
    code, lines = scanfoundry("--debug", "data", "check", tmp_path / EVIL)
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert r"\x1b[31m" in lines[-1] + lines[-2]
