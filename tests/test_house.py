"""The shape of the code that `benchmarks/house.py` prints: no circles, small roots, everything annotated."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MOST_IN_ROOT = 12

_spec = importlib.util.spec_from_file_location("house", ROOT / "benchmarks" / "house.py")
house = importlib.util.module_from_spec(_spec)
sys.modules["house"] = house  # where dataclasses look their module up
_spec.loader.exec_module(house)


@pytest.mark.parametrize("package", house.PACKAGES)
def test_shape_of_a_package(package: str):
    shape = house.shape_of(package)
    assert shape.circles == []
    assert shape.in_root <= MOST_IN_ROOT
    assert shape.bare == []


def test_packages_import_in_one_direction():
    assert house.circles_in(ROOT, ROOT) == []


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """A package `toy` with a circle of two files deep inside, one between folders, and what else is counted."""
    files = {
        "toy/__init__.py": "from scanfoundry.toy.top import f\n",
        "toy/top.py": "def f(x: int, *rest: int) -> int:\n    return x\n\n\ndef g(x) -> None: ...\n",
        "toy/one/__init__.py": "",
        "toy/one/a.py": "from scanfoundry.toy.one.b import B\n\n\nclass A:\n    def m(self) -> B: ...\n",
        "toy/one/b.py": "from scanfoundry.toy.two import A\n\n\nclass B:\n"
        "    def m(self):\n        from scanfoundry.toy.one import a\n\n        return a\n",
        "toy/two/__init__.py": "import scanfoundry.toy.one\n\n\nclass A: ...\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_what_is_counted(toy: Path):
    shape = house.shape_of("toy", toy)
    assert shape.circles == [["toy/one", "toy/two"], ["toy/one/a", "toy/one/b"]]
    assert shape.in_root == 1
    assert shape.bare == ["toy/one/b.py:5 m", "toy/top.py:5 g"]
    assert shape.annotated == 0.5
    assert shape.twice == {"A": 2}
    assert shape.functions["toy/one/b.py:5 m"] == 4
    text = house.report([shape])
    assert "50.0%" in text
    assert "circle            toy/one/a, toy/one/b" in text
    assert "class             A: 2 times" in text
