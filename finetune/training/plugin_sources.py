"""The source files that a plug-in consists of: its own, and the modules beside it that it imports; none is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path


def with_modules_beside(paths: list[Path]) -> list[Path]:
    """The files, each followed by the modules of its own folder or package that it imports, and that these import.

    What is installed elsewhere is left out: it has a version of its own. So is what a name tells only at run time.
    """
    found: dict[Path, None] = {}
    waiting = list(reversed(paths))
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path] = None
            waiting += reversed([each for each in _beside(path) if each not in found])
    return list(found)


def _beside(path: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError):
        return  # whoever imports it says what is wrong
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _modules(_roots(path), alias.name)
        elif isinstance(node, ast.ImportFrom):
            roots = _roots(path) if not node.level else [path.parents[node.level - 1]]
            for name in [alias.name for alias in node.names] or [""]:
                yield from _modules(roots, f"{node.module or ''}.{name}".strip("."))


def _roots(path: Path) -> list[Path]:
    """Where absolute imports are looked for: the folder, and that of the package that the file belongs to."""
    top = path.parent
    while (top / "__init__.py").is_file():
        top = top.parent
    return list(dict.fromkeys([path.parent, top]))


def _modules(roots: list[Path], name: str) -> Iterator[Path]:
    """The files of a module and of the packages around it, from the first root that has any."""
    parts = name.split(".")
    for root in roots:
        places = [root.joinpath(*parts[: n + 1]) for n in range(len(parts))]
        files = [file for place in places for file in (place.with_suffix(".py"), place / "__init__.py")]
        there = [file for file in files if file.is_file()]
        if there:
            yield from there
            return
