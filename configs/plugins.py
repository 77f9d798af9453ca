"""Plug-ins: parts from outside of this package, such as a site's own file format, an objective, or a task.

A plug-in is a Python file or an installed module with a dictionary `PLUGINS` from a kind ("objective", "backbone",
"format", "task", "metric", "output") to a list of what it adds of that kind. The registry of each kind documents what
an entry is. The environment variable SCANFOUNDRY_PLUGINS names files (several with the path separator between them), so
that all processes of a run and of a cluster load the same ones; installed modules use the entry point group
`scanfoundry.plugins`. A plug-in is code and runs with the rights of the user: nothing in a recipe can name one.

A file is imported when a kind that it adds is first asked for: when a configuration is checked or a scan read, never
while a part of scanfoundry is imported. One file may therefore add all kinds and import all of scanfoundry. So that the
kinds are known before, `PLUGINS = {"task": [...]}` has its keys as plain strings.
"""

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from scanfoundry.configs.errors import UserError

T = TypeVar("T")
R = TypeVar("R")
VARIABLE = "SCANFOUNDRY_PLUGINS"
GROUP = "scanfoundry.plugins"
KINDS = ("objective", "backbone", "format", "task", "metric", "output")


def plugins(kind: str) -> list[Any]:
    """What all plug-ins add of one kind, in the order in which they are named.

    Args:
        kind: one of `KINDS`.

    Raises:
        UserError: a file is missing, fails while it is imported, has no `PLUGINS`, or adds a kind that does not exist.
    """
    assert kind in KINDS, kind
    return [entry for module in _modules(kind) for entry in module.PLUGINS.get(kind, [])]


def plugin_files() -> list[Path]:
    """The files of all plug-ins, in the order in which they are named; none is imported."""
    installed = [_origin(entry.module) for entry in entry_points(group=GROUP)]
    return [*_named(), *(path for path in installed if path is not None)]


def _named() -> list[Path]:
    """The files of the environment variable, each once."""
    return list(dict.fromkeys(Path(path) for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path))


def _origin(module: str) -> Path | None:
    spec = _told(module, importlib.util.find_spec, module)
    return None if spec is None or spec.origin is None else Path(spec.origin)


@cache
def _modules(kind: str) -> list[ModuleType]:
    """The plug-ins that add something of a kind."""
    found = [_from_file(path) for path in _named() if _may_add(kind, path)]
    for entry in entry_points(group=GROUP):
        origin = _origin(entry.module)
        if origin is None or _may_add(kind, origin):
            found.append(_told(entry.module, importlib.import_module, entry.module))
    for module in found:
        _check(module)
    return found


def _check(module: ModuleType) -> None:
    """UserError where `PLUGINS` is not what it should be: its entries would be lost without a word."""
    adds = getattr(module, "PLUGINS", None)
    if not isinstance(adds, dict) or not all(isinstance(entries, list | tuple) for entries in adds.values()):
        raise UserError(f"{module.__file__}: a plug-in has a dictionary PLUGINS = {{kind: [entries]}}")
    unknown = sorted(map(str, set(adds) - set(KINDS)))
    if unknown:
        raise UserError(f"{module.__file__}: PLUGINS has '{unknown[0]}'; the kinds are {', '.join(KINDS)}")


def _may_add(kind: str, path: Path) -> bool:
    """Whether the keys of `PLUGINS`, as they are written in a file, have the kind, or one that does not exist; where
    they cannot be read without running the file, any."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return True  # whoever imports it says what is wrong
    for node in body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            if ast.unparse(target) == "PLUGINS":
                keys = [key.value for key in node.value.keys if isinstance(key, ast.Constant)]
                return kind in keys or len(keys) < len(node.value.keys) or not set(keys) <= set(KINDS)
    return True


@cache
def _from_file(path: Path) -> ModuleType:
    """The module of a file, under a name of its own, by which its functions can be found in other processes too."""
    name = f"scanfoundry_plugin_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise UserError(f"{VARIABLE} names {path}, which is no Python file")
    if name in _importing:
        raise UserError(
            f"the plug-in {path} asks for what it adds itself while it is imported (a registry, or a configuration "
            "that is checked there): put what it asks for into a file of its own"
        )
    if name in sys.modules:
        raise UserError(f"{VARIABLE} names two files {path.name}: rename one of them")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    _importing.add(name)
    try:
        _told(str(path), spec.loader.exec_module, module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _importing.discard(name)
    return module


_importing: set[str] = set()


def _told(plugin: str, call: Callable[[T], R], argument: T) -> R:
    """What the call gives. UserError, naming the plug-in, for whatever it raises."""
    try:
        return call(argument)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"the plug-in {plugin} cannot be imported: {type(error).__name__}: {error}") from error
