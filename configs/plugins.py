"""Plug-ins: parts from outside of this package, such as a site's own file format, an objective, or a task.

A plug-in is a Python file or an installed module with a dictionary `PLUGINS` from a kind ("objective", "backbone",
"format", "task", "metric", "output") to a list of what it adds of that kind. The registry of each kind documents what
an entry is. The environment variable SCANFOUNDRY_PLUGINS names files (several with the path separator between them), so
that all processes of a run and of a cluster load the same ones; installed modules use the entry point group
`scanfoundry.plugins`. A plug-in is code and runs with the rights of the user: nothing in a recipe can name one.

A file is imported when a kind that it adds is first asked for: tasks, metrics and outputs are asked for late, so their
files may import all of scanfoundry; a backbone or an objective is asked for while its registry is imported. So that the
kinds are known before, `PLUGINS = {"task": [...]}` has its keys as plain strings.
"""

import ast
import importlib.util
import os
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from scanfoundry.configs.errors import UserError

VARIABLE = "SCANFOUNDRY_PLUGINS"
GROUP = "scanfoundry.plugins"
KINDS = ("objective", "backbone", "format", "task", "metric", "output")


def plugins(kind: str) -> list[Any]:
    """What all plug-ins add of one kind, in the order in which they are named.

    Args:
        kind: one of `KINDS`.

    Raises:
        UserError: a file is missing, fails while it is imported, or adds a kind that does not exist.
    """
    assert kind in KINDS, kind
    return [entry for module in _modules(kind) for entry in getattr(module, "PLUGINS", {}).get(kind, [])]


def plugin_files() -> list[Path]:
    """The files of all plug-ins, in the order in which they are named."""
    return [Path(module.__file__) for module in _modules() if module.__file__ is not None]


@cache
def _modules(kind: str | None = None) -> list[ModuleType]:
    """The plug-ins that add something of a kind, or all of them."""
    named = [Path(path) for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    found = [_from_file(path) for path in named if _may_add(kind, path)]
    for entry in entry_points(group=GROUP):
        spec = importlib.util.find_spec(entry.module)
        if spec is None or spec.origin is None or _may_add(kind, Path(spec.origin)):
            found.append(entry.load())
    for module in found:
        unknown = sorted(set(getattr(module, "PLUGINS", {})) - set(KINDS))
        if unknown:
            raise UserError(f"{module.__file__}: PLUGINS has '{unknown[0]}'; the kinds are {', '.join(KINDS)}")
    return found


def _may_add(kind: str | None, path: Path) -> bool:
    """Whether the keys of `PLUGINS`, as they are written in a file, have the kind, or one that does not exist; where
    they cannot be read without running the file, any."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return True  # whoever imports it says what is wrong
    for node in body:
        if (
            isinstance(node, ast.Assign)
            and ast.unparse(node.targets[0]) == "PLUGINS"
            and isinstance(node.value, ast.Dict)
        ):
            keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
            return kind in (None, *keys) or len(keys) < len(node.value.keys) or not set(keys) <= set(KINDS)
    return True


@cache
def _from_file(path: Path) -> ModuleType:
    """The module of a file, under a name of its own, by which its functions can be found in other processes too."""
    name = f"scanfoundry_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{VARIABLE} names {path}, which is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UserError(f"the plug-in {path} cannot be imported: {type(error).__name__}: {error}") from error
    return module
