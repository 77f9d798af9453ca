"""Measured durations decide which tests are slow, which files begin, and that a file stays in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BODY = r"""
import os, pathlib, time, pytest

@pytest.mark.parametrize("number", range(4))
def test_quick(number):
    with open("order.txt", "a") as file:
        file.write(f"{os.getpid()} {pathlib.Path(__file__).name}\n")

def test_long():
    time.sleep(0.2)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Three files of five tests each, of which `c` is known to take longest and `b` to have a slow test."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: slow\n")
    for name in "abc":
        (tmp_path / "tests" / f"test_{name}.py").write_text(BODY)
    known = {"b": {"test_long": 2.0}, "c": {"test_quick[1]": 3.0}, "gone": {"test_x": 9.0}}
    known = {f"tests/test_{name}.py": tests for name, tests in known.items()}
    (tmp_path / "tests" / "durations.json").write_text(json.dumps(known))
    return tmp_path


def ran(project: Path, *words: str) -> str:
    support = {"PYTHONPATH": str(Path(__file__).parent), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "durations", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=project, env=os.environ | support, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_slow_tests_are_left_out_and_the_longest_file_begins(project):
    assert "13 passed, 2 deselected" in ran(project, "-m", "not slow")
    names = [line.split()[1] for line in (project / "order.txt").read_text().splitlines()]
    assert names == ["test_c.py"] * 3 + ["test_b.py"] * 4 + ["test_a.py"] * 4


def test_a_file_stays_in_one_process(project):
    ran(project, "--numprocesses", "2", "--dist", "loadgroup")
    lines = set((project / "order.txt").read_text().splitlines())
    assert len(lines) == 3
    assert len({line.split()[0] for line in lines}) == 2


@pytest.mark.parametrize("words", [[], ["--numprocesses", "2", "--dist", "loadgroup"]])
def test_what_is_measured_takes_the_place_of_what_was_known(project, words):
    ran(project, "--write-durations", "tests/test_a.py", "tests/test_c.py", *words)
    known = json.loads((project / "tests" / "durations.json").read_text())
    assert list(known) == ["tests/test_a.py", "tests/test_b.py", "tests/test_c.py"]
    assert known["tests/test_b.py"] == {"test_long": 2.0}
    for name in "ac":
        assert 0.2 <= known[f"tests/test_{name}.py"]["test_long"] < 60
