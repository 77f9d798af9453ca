import os
import subprocess
import sys
from pathlib import Path


def asked(plugin: Path | str, code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SCANFOUNDRY_PLUGINS": str(plugin)}
    prologue = "from scanfoundry.configs.plugins import plugins\nfrom scanfoundry.configs.errors import UserError\n"
    return subprocess.run([sys.executable, "-c", prologue + code], env=environment, capture_output=True, text=True)


def test_a_file_adds_what_it_names(tmp_path: Path):
    (tmp_path / "toy.py").write_text("PLUGINS = {'metric': [1, 2], 'task': ['t']}\n")
    done = asked(tmp_path / "toy.py", "print(plugins('metric'), plugins('task'), plugins('format'))")
    assert done.stdout.strip() == "[1, 2] ['t'] []", done.stderr


def test_several_files_keep_their_order(tmp_path: Path):
    for name in ("b", "a"):
        (tmp_path / f"{name}.py").write_text(f"PLUGINS = {{'metric': ['{name}']}}\n")
    named = os.pathsep.join(str(tmp_path / f"{name}.py") for name in ("b", "a"))
    assert asked(named, "print(plugins('metric'))").stdout.strip() == "['b', 'a']"


def test_mistakes_are_told_in_one_line(tmp_path: Path):
    catch = "try:\n    plugins('metric')\nexcept UserError as error:\n    print(error)\n"
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "odd.py").write_text("PLUGINS = {'optimiser': []}\n")
    assert "no Python file" in asked(tmp_path / "missing.py", catch).stdout
    assert "ZeroDivisionError" in asked(tmp_path / "broken.py", catch).stdout
    assert "'optimiser'; the kinds are" in asked(tmp_path / "odd.py", catch).stdout


def test_a_file_is_imported_for_what_it_adds_and_for_nothing_else(tmp_path: Path):
    (tmp_path / "toy.py").write_text("print('imported')\nPLUGINS = {'task': ['t']}\n")
    done = asked(tmp_path / "toy.py", "print(plugins('backbone'), plugins('task'), plugins('task'))")
    assert done.stdout == "imported\n[] ['t'] ['t']\n", done.stderr
