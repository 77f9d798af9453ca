"""From a file or a recipe's name, and `key=value` words, to a checked configuration."""

import difflib
import types
import typing
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from scanforge.configs.errors import UserError

T = TypeVar("T", bound=BaseModel)


def recipes(kind: str) -> dict[str, Path]:
    """Recipe names of one kind ('pretrain', 'finetune', 'cluster') and where they lie."""
    folder = Path(str(files("scanforge.configs"))) / kind
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(source: str | Path, kind: str) -> Path:
    """The file behind `source`, a path or a recipe's name; UserError names the nearest recipe."""
    path = Path(source)
    if path.is_file():
        return path
    known = recipes(kind)
    if str(source) in known:
        return known[str(source)]
    near = difflib.get_close_matches(str(source), known, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"recipes: {', '.join(known) or 'none'}"
    raise UserError(f"no {kind} config '{source}': neither a file nor a recipe; {hint}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; UserError where it is not one."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"cannot read config {path}: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"config {path} must be a mapping of keys to values")
    return content


def override(content: dict[str, Any], words: list[str]) -> dict[str, Any]:
    """`content` with each `a.b.0.c=value` laid over it; values are read as YAML."""
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise UserError(f"'{word}' is not of the form key=value")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"the value of '{key}' is not YAML: {text}") from error
        _assign(content, key.split("."), value, key)
    return content


def _assign(node: Any, parts: list[str], value: Any, key: str) -> None:
    for part in parts[:-1]:
        if isinstance(node, list):
            node = _item(node, part, key)
            continue
        if not isinstance(node.get(part), dict | list):
            node[part] = {}
        node = node[part]
    if isinstance(node, list):
        _item(node, parts[-1], key)
        node[int(parts[-1])] = value
    else:
        node[parts[-1]] = value


def _item(node: list[Any], part: str, key: str) -> Any:
    if not part.isdigit() or int(part) >= len(node):
        raise UserError(f"'{key}': '{part}' is no index of a list of {len(node)}")
    return node[int(part)]


def load(model: type[T], source: str | Path, kind: str, words: list[str] | None = None) -> T:
    """The configuration of type `model` from `source` with the overrides `words` applied.

    Raises UserError in one line for a missing file, an unknown key (with the nearest valid name) or a bad value.
    """
    path = find(source, kind)
    return check(model, override(read_yaml(path), words or []), str(source))


def check(model: type[T], content: dict[str, Any], origin: str) -> T:
    """`content` validated as `model`; the first problem becomes a UserError."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(model, error)}") from error


def _explain(model: type[BaseModel], error: ValidationError) -> str:
    # An unknown key explains itself best, and often causes the other complaints.
    problems = sorted(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
    first = problems[0]
    loc = [str(part) for part in first["loc"]]
    if first["type"] == "extra_forbidden":
        valid = sorted(_fields(model, loc[:-1]))
        near = difflib.get_close_matches(loc[-1], valid, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(valid)}"
        return f"unknown key '{'.'.join(loc)}'; {hint}"
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    message = first["msg"].removeprefix("Value error, ")
    return f"{'.'.join(loc) or 'config'}: {message}{more}"


def _fields(model: type[BaseModel], loc: list[str]) -> set[str]:
    """Names of the fields at `loc`; pydantic puts the tag of a union and list indices into a location too."""
    models = {model}
    for part in loc:
        inner: set[type[BaseModel]] = set()
        for owner in models:
            if part in owner.model_fields:
                inner |= _models_in(owner.model_fields[part].annotation)
        tagged = {m for m in models if "name" in m.model_fields and m.model_fields["name"].default == part}
        models = inner or tagged or models
    return {name for owner in models for name in owner.model_fields}


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {found for argument in typing.get_args(annotation) for found in _models_in(argument)}
