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
LONGEST = 1 << 22  # characters of a configuration
DEEPEST = 50  # levels in one
MOST = 100_000  # values in one, where its aliases are written out


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
    """`content` with each `a.b.0.c=value` laid over it; values are read as YAML."""
    for word in words:
        key, separator, text = word.partition("=")
        if not separator or not key:
            raise UserError(f"'{word[:80]}' is not of the form key=value")
        try:
            value = plain_yaml(text)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"the value of '{key[:80]}' is not YAML: {text[:80]} ({reason})") from error
        parts = key.split(".")
        if len(parts) > DEEPEST:
            raise UserError(f"'{key[:80]}...' has {len(parts)} parts; no key has more than {DEEPEST}")
        _assign(content, parts, value, key)
    return content


def plain_yaml(text: str) -> Any:
    """What YAML says, in plain values. ValueError, in any wording, for what is none or would cost more than it says.

    Aliases may name a part again, but not until it unfolds without end (a, b: [*a, *a], c: [*b, *b] ...).
    """
    if len(text) > LONGEST:
        raise ValueError(f"more than {LONGEST} characters")
    try:
        content = yaml.safe_load(text)
        places = _places(content, 0)
    except RecursionError:
        raise ValueError("it is nested too deeply, or contains itself") from None
    except MemoryError:
        raise
    except Exception as error:  # of a value such as 2024-99-99 or !!int x, whatever the parser stumbles over
        raise ValueError(str(error) or type(error).__name__) from error
    if places > MOST:
        raise ValueError(f"its aliases unfold to more than {MOST} values")
    return content


def _places(value: Any, level: int) -> int:
    """How many values there are, one that is named again counted again; more than `MOST` where it is too many."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if level > DEEPEST:
        raise RecursionError
    total = 1
    for part in inner:
        total += _places(part, level + 1)
        if total > MOST:
            break
    return total


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
    if not (part.isascii() and part.isdigit()) or len(part) > 9 or int(part) >= len(node):
        raise UserError(f"'{key[:80]}': '{part[:20]}' is no index of a list of {len(node)}")
    return node[int(part)]


def load(model: type[T], source: str | Path, kind: str, words: list[str] | None = None) -> T:
    """The configuration of type `model` from `source` with the overrides `words` applied.

    Raises UserError in one line for a missing file, an unknown key (with the nearest valid name) or a bad value.
    """
    path = find(source, kind)
    return check(model, override(read_yaml(path), words or []), str(source))


def check(model: type[T], content: dict[str, Any], origin: str) -> T:
    """`content` validated as `model`; the first problem becomes a UserError."""
    _refuse_huge(content, "", origin)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(f"{origin}: {_explain(model, error)}") from error


def _refuse_huge(value: Any, key: str, origin: str) -> None:
    """No number of a configuration needs more than 64 bits; libraries that get one end in as many ways as there are."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        shown = str(value) if abs(value) < 10**30 else f"a number of {value.bit_length()} bits"
        raise UserError(f"{origin}: {key}: {shown} does not fit into 64 bits")
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        _refuse_huge(inner, f"{key}.{name}" if key else str(name), origin)


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
