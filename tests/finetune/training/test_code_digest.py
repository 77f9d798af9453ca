"""Whose code a training runs: also that of modules beside a plug-in."""

from pathlib import Path

from scanfoundry.finetune.training import code_digest
from scanfoundry.finetune.training.plugin_sources import with_modules_beside


def test_modules_beside_a_plug_in_are_of_its_sources(tmp_path: Path):
    """Also those of a package, and those that only another one imports; neither other files nor what is installed."""
    (tmp_path / "toy.py").write_text("import json, numpy\nfrom helper import one\nPLUGINS = {}\n")
    (tmp_path / "helper.py").write_text("import toy\nfrom parts.inner import two\none = 1\n")
    (tmp_path / "unused.py").write_text("")
    (tmp_path / "parts").mkdir()
    for name, text in (("__init__", ""), ("inner", "from . import deep\ntwo = 2\n"), ("deep", ""), ("unused", "")):
        (tmp_path / "parts" / f"{name}.py").write_text(text)
    names = ["toy.py", "helper.py", "parts/__init__.py", "parts/inner.py", "parts/deep.py"]
    found = with_modules_beside([tmp_path / "toy.py"])
    assert sorted(path.relative_to(tmp_path).as_posix() for path in found) == sorted(names)
    assert found[0] == tmp_path / "toy.py"
    assert with_modules_beside([tmp_path / "none.py"]) == [tmp_path / "none.py"]


def test_a_changed_module_beside_a_plug_in_changes_the_digest_of_the_code(tmp_path: Path, monkeypatch):
    (tmp_path / "toy.py").write_text("from helper import one\nPLUGINS = {}\n")
    (tmp_path / "helper.py").write_text("one = 1\n")
    monkeypatch.setenv("SCANFOUNDRY_PLUGINS", str(tmp_path / "toy.py"))
    before = code_digest._code.__wrapped__()
    assert code_digest._code.__wrapped__() == before
    (tmp_path / "helper.py").write_text("one = 2\n")
    assert code_digest._code.__wrapped__() != before
