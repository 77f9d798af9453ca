"""Plug-ins: parts from outside of this package, such as a site's own file format, an objective, or a task.

A plug-in is a Python file or an installed module with a dictionary `PLUGINS` from a kind ("objective", "backbone",
"format", "task", "metric", "output") to a list of what it adds of that kind. The registry of each kind documents what
an entry is. The environment variable SCANFOUNDRY_PLUGINS names files (several with the path separator between them), so
that all processes of a run and of a cluster load the same ones; installed modules use the entry point group
`scanfoundry.plugins`. A plug-in is code and runs with the rights of the user: nothing in a recipe can name one.
"""

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
    return [entry for module in _modules() for entry in getattr(module, "PLUGINS", {}).get(kind, [])]


def plugin_files() -> list[Path]:
    """The files of all plug-ins, in the order in which they are named."""
    return [Path(module.__file__) for module in _modules() if module.__file__ is not None]


@cache
def _modules() -> list[ModuleType]:
    named = [path for path in os.environ.get(VARIABLE, "").split(os.pathsep) if path]
    found = [_from_file(Path(path)) for path in named]
    found += [each.load() for each in entry_points(group=GROUP)]
    for module in found:
        unknown = sorted(set(getattr(module, "PLUGINS", {})) - set(KINDS))
        if unknown:
            raise UserError(f"{module.__file__}: PLUGINS has '{unknown[0]}'; the kinds are {', '.join(KINDS)}")
    return found


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
