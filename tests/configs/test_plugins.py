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


def test_what_would_add_nothing_is_a_mistake(tmp_path: Path):
    catch = "try:\n    print(plugins('metric'))\nexcept UserError as error:\n    print(error)\n"
    for number, text in enumerate(("PLUGIN = {}", "PLUGINS = []", "PLUGINS = {'metric': 'm'}")):
        (tmp_path / f"odd{number}.py").write_text(text)
        assert "has a dictionary PLUGINS = {kind: [entries]}" in asked(tmp_path / f"odd{number}.py", catch).stdout
    (tmp_path / "other").mkdir()
    for folder in (tmp_path, tmp_path / "other"):
        (folder / "toy.py").write_text("PLUGINS = {'metric': [1]}")
    named = [str(tmp_path / "toy.py"), str(tmp_path / "other" / "toy.py")]
    assert "names two files toy.py" in asked(os.pathsep.join(named), catch).stdout
    assert asked(os.pathsep.join(named[:1] * 2), catch).stdout == "[1]\n"


def test_an_annotated_dictionary_is_read_too(tmp_path: Path):
    (tmp_path / "toy.py").write_text("print('imported')\nPLUGINS: dict[str, list[str]] = {'task': ['t']}\n")
    done = asked(tmp_path / "toy.py", "print(plugins('backbone'), plugins('task'))")
    assert done.stdout == "imported\n[] ['t']\n", done.stderr


def test_the_files_are_known_without_an_import(tmp_path: Path):
    """A study's digest is of all plug-ins, also of those whose libraries it does without."""
    (tmp_path / "toy.py").write_text("import nobody_has_this\nPLUGINS = {'objective': []}\n")
    done = asked(tmp_path / "toy.py", "from scanfoundry.configs.plugins import plugin_files\nprint(plugin_files())")
    assert done.stdout.strip() == str([tmp_path / "toy.py"]), done.stderr


def test_a_file_that_needs_what_it_adds_is_told_so(tmp_path: Path):
    text = "from scanfoundry.configs.plugins import plugins\nplugins('format')\nPLUGINS = {'format': [], 'task': []}\n"
    (tmp_path / "toy.py").write_text(text)
    done = asked(tmp_path / "toy.py", "try:\n    plugins('task')\nexcept UserError as error:\n    print(error)\n")
    assert "into a file of its own" in done.stdout
