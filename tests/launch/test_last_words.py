"""What nobody foresaw ends in one line too, with the exit code of a mistake where it is one."""

import subprocess
import sys
from pathlib import Path

import pytest
import warm

MAIN = """
import sys
from scanfoundry.launch.cli import main as cli

def app(**options):
    exec(sys.argv[1], {})

cli.app = app
cli.main([])
"""


@pytest.mark.parametrize(
    ("code", "said"),
    [("raise MemoryError", "not enough memory"), ("def f(): f()\nf()", "nested too deeply"),
     ("import json; json.loads('[' * 10**6)", "nested too deeply"), ("bytearray(1 << 62)", "not enough memory")],
)  # fmt: skip
def test_one_line_and_exit_code_2(code: str, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", MAIN, code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.timeout(120)
def test_odd_configurations_at_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "deep.yaml").write_text("steps: " + "[" * 100_000)
    for words, said in (
        (["pretrain", str(tmp_path / "deep.yaml")], "nested too deeply"),
        (["pretrain", "demo", "seed=18446744073709551616"], "seed"),
        (["pretrain", "demo", "seed=-1"], "seed"),
        (["finetune", "demo", "seeds=[18446744073709551616]"], "seeds"),
    ):
        done = warm.run([warm.SCANFOUNDRY, *words], capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert said in done.stderr
        assert len(done.stderr.splitlines()) == 1
