"""Files of this package as they go into an export: with the functions of scanfoundry in place of their imports."""

import ast
import inspect
from collections.abc import Callable, Iterator
from importlib import import_module
from types import CodeType, ModuleType
from typing import Any


def source_without_scanfoundry(module: ModuleType, renamed: dict[str, str] | None = None) -> str:
    """The module's source with no import of scanfoundry left.

    A module in `renamed` is imported under its new name; of every other one, the functions imported are written out,
    and with them the functions and constants of their modules that they use. Functions take any object with the right
    attributes for a configuration, because annotations are not evaluated (`from __future__ import annotations`).
    """
    text = inspect.getsource(module)
    lines = text.splitlines()
    written: dict[str, str] = {}
    for node in ast.parse(text).body:
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("scanfoundry."):
            continue
        name = str(node.module)
        new = ""
        if renamed and name in renamed:
            new = lines[node.lineno - 1].replace(name, renamed[name])
        else:
            for alias in node.names:
                _write_out(getattr(import_module(name), alias.name), alias.name, written)
        lines[node.lineno - 1] = new
        for number in range(node.lineno, node.end_lineno or node.lineno):
            if not new:
                lines[number] = ""
    at = _end_of_imports(text)
    body = ["", *"\n\n\n".join(written.values()).splitlines(), ""] if written else []
    return "\n".join([*lines[:at], *body, *lines[at:]]) + "\n"


def _end_of_imports(text: str) -> int:
    return max(node.end_lineno or 0 for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom))


def _write_out(value: Any, name: str, written: dict[str, str]) -> None:
    """Add a function or constant to `written`, after what it uses."""
    if name in written:
        return
    if not inspect.isfunction(value):
        written[name] = f"{name} = {value!r}"
        return
    function: Callable[..., Any] = inspect.unwrap(value)
    source = inspect.getsource(function)
    scope = function.__globals__
    for used in _names(function.__code__):
        found = scope.get(used)
        if used != name and found is not None and not inspect.ismodule(found) and not inspect.isclass(found):
            _write_out(found, used, written)
    written[name] = source.rstrip()


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
