"""Loads a configuration from a file or a recipe, and from `key=value` words."""

from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.parsing.checking import check, near
from scanfoundry.configs.parsing.command_line import give_way, parsed
from scanfoundry.configs.parsing.plain_yaml import LONGEST, plain_yaml

__all__ = ["check", "find", "load", "override", "read_yaml", "recipes"]

T = TypeVar("T", bound=BaseModel)


def recipes(kind: str) -> dict[str, Path]:
    """Recipe names of one kind ('pretrain', 'finetune', 'cluster') and where they lie."""
    folder = Path(str(files("scanfoundry.configs"))) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(source: str | Path, kind: str) -> Path:
    """The file of a configuration.

    Args:
        source: a path, or the name of a recipe.
        kind: of the recipe: 'pretrain', 'finetune', 'cluster'.

    Raises:
        UserError: it is neither; the text names the nearest recipe.
    """
    path = Path(source)
    if path.is_file():
        return path
    known = recipes(kind)
    if str(source) in known:
        return known[str(source)]
    hint = near(path.stem, known) or f"; recipes: {', '.join(known) or 'none'}"
    raise UserError(f"no {kind} config '{source}': neither a file nor a recipe{hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UserError: the file cannot be read or holds no mapping.
    """
    try:
        with path.open("rb") as stream:
            text = stream.read(LONGEST + 1)
        content = plain_yaml(text.decode("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read config {path}: {' '.join(str(error).split())[:300]}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"config {path} must be a mapping of keys to values")
    return content


def override(content: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """Lay values over a configuration.

    Args:
        content: the mapping, which is changed.
        words: `a.b.0.c=value`, whose values are read as YAML.

    Returns:
        `content`.

    Raises:
        UserError: a word is not of that form, or its key does not fit into the content.
    """
    for key, value in parsed(words).items():
        _assign(content, key.split("."), value, key)
    return content


def _assign(node: Any, parts: list[str], value: Any, key: str) -> None:
    for part in parts[:-1]:
        if isinstance(node, list):
            node = _item(node, part, key)
            continue
        if not isinstance(held := node.get(part), dict | list):
            node[part] = {"name": held} if isinstance(held, str) else {}  # a name stands for a thing of its kind
        node = node[part]
    if isinstance(node, list):
        _item(node, parts[-1], key)
        node[int(parts[-1])] = value
    else:
        node[parts[-1]] = value


def _item(node: list[Any], part: str, key: str) -> Any:
    if not (part.isascii() and part.isdigit()) or len(part) > 9 or int(part) >= len(node):
        raise UserError(f"'{key[:80]}': '{part[:20]}' is no index of a list of {len(node)}")
    return node[int(part)]


def load(model: type[T], source: str | Path, kind: str, words: list[str] | None = None) -> T:
    """Load a configuration and check it.

    Args:
        model: its type.
        source: a path, or the name of a recipe.
        kind: of the recipe.
        words: `key=value` overrides. Where the file contradicts them, they hold.

    Raises:
        UserError: the file is missing, a key is unknown (with the nearest valid name), or a value is bad; one line for
            each mistake.
    """
    content = read_yaml(find(source, kind))
    give_way(model, content, parsed(words or []))
    return check(model, override(content, words or []), str(source))
