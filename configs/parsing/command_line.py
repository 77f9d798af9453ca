"""Values from the command line, which override what a file or a recipe says, with all that contradicts them."""

from typing import Any

from pydantic import BaseModel

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.parsing.plain_yaml import DEEPEST, plain_yaml

NAME = "name"  # chooses among several kinds of a thing: backbone, objective, task


def parsed(words: list[str]) -> dict[str, Any]:
    """`a.b.0.c=value` words as values by key; values are read as YAML.

    Raises:
        UserError: a word is not of that form, or its value is not YAML.
    """
    found = {}
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise UserError(f"'{word[:80]}' is not of the form key=value")
        if key.count(".") >= DEEPEST:
            raise UserError(f"'{key[:80]}...' has {key.count('.') + 1} parts; no key has more than {DEEPEST}")
        try:
            found[key] = plain_yaml(text)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the value of '{key[:80]}' is not YAML: {text[:80]} ({reason})") from error
    return found


def give_way(model: type[BaseModel], content: dict[str, Any], typed: dict[str, Any]) -> None:
    """Remove from a file's content what contradicts the typed values; see `Config.rivals`.

    Where another kind is typed (`backbone.name=vit` over a STU-Net), what the file says of its own kind is removed too.

    Args:
        model: type of the configuration.
        content: of the file, which is changed.
        typed: values by key.
    """
    idle = model.gives_way(typed, content) if issubclass(model, Config) else []
    for key, value in typed.items():
        parent, _, last = key.rpartition(".")
        held = _get(content, parent) if parent else None
        if last == NAME and isinstance(held, dict) and held.get(NAME) not in (None, value):
            held.clear()
    if not issubclass(model, Config):
        return
    effective = {key: value for key, value in typed.items() if value is not None and value is not False}
    for key, others in model.rivals.items():
        if not any(_within(each, key) or _holds(each, key, value) for each, value in effective.items()):
            continue
        for other, keys in others.items():
            if _get(content, other) in (None, False) or any(_within(each, other) for each in typed):
                continue
            for each in keys:
                if not any(_within(one, each) for one in typed):
                    _remove(content, each)
    for each in idle:
        if not any(_within(one, each) for one in typed):
            _remove(content, each)


def _within(typed: str, key: str) -> bool:
    """Whether `typed` is the key, or a part of what it holds."""
    return typed == key or typed.startswith(f"{key}.")


def _holds(typed: str, key: str, value: Any) -> bool:
    """Whether a mapping was typed that has the key in it."""
    if not key.startswith(f"{typed}.") or not isinstance(value, dict):
        return False
    return _get(value, key.removeprefix(f"{typed}.")) not in (None, False)


def _get(content: Any, key: str) -> Any:
    for part in key.split("."):
        if not isinstance(content, dict) or part not in content:
            return None
        content = content[part]
    return content


def _remove(content: dict[str, Any], key: str) -> None:
    parent, _, last = key.rpartition(".")
    held = _get(content, parent) if parent else content
    if isinstance(held, dict):
        held.pop(last, None)
