"""The benchmarks are not run here; what they import exists, and their first lines name the command."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "benchmarks").rglob("*.py"))
# Helpers, and what `loader.py` starts.
NO_COMMAND = {"timing.py", "record.py", "product.py", "choosing.py", "synthetic_shards.py", "ours.py"}


def defined(module: str) -> set[str] | None:
    """The names at the top of a module of ours; None where there is no such module."""
    path = ROOT.joinpath(*module.split(".")[1:])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        return None
    names = {each.stem for each in path.iterdir()} if path.is_dir() else set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def missing(tree: ast.AST) -> list[str]:
    """What is imported of scanfoundry and does not exist."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("scanfoundry."):
            names = defined(node.module)
            found += [f"{node.module}.{each.name}" for each in node.names if names is None or each.name not in names]
        elif isinstance(node, ast.Import):
            ours = [each.name for each in node.names if each.name.startswith("scanfoundry.")]
            found += [name for name in ours if defined(name) is None]
    return found


def test_what_is_missing_is_found():
    tree = ast.parse("from scanfoundry.configs.errors import UserError, Nobody\nimport scanfoundry.nowhere\n"
                     "from scanfoundry.datasets import readers\n")  # fmt: skip
    assert missing(tree) == ["scanfoundry.configs.errors.Nobody", "scanfoundry.nowhere"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_what_a_benchmark_imports_exists(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert missing(tree) == []
    if path.parent.name == "benchmarks" and path.name not in NO_COMMAND:
        assert f"command: {'bash' if path.name == 'requeue.py' else f'python benchmarks/{path.name}'}" in (
            ast.get_docstring(tree) or ""
        )
