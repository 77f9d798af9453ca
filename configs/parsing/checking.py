"""Validation of a configuration, with one plain line for each mistake."""

import difflib
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError, UserErrors
from scanfoundry.configs.parsing.readings import alternatives, is_model, read_as_meant

T = TypeVar("T", bound=BaseModel)
SAME = {
    "gpu": "cuda",
    "fp16": "bf16",
    "adam": "adamw",
    "resnet": "resenc",
    "unet": "stunet",
}  # other words, nearer to a wrong one

# What is asked for, by pydantic's name of the error.
WANTED = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "string": "a text (in quotes)",
    "path": "a path", "list": "a list, as in [a, b]", "tuple": "a list, as in [a, b]",
    "dict": "a mapping, as in {key: value}", "model": "a mapping, as in {key: value}", "finite": "a finite number",
}  # fmt: skip


def check(model: type[T], content: dict[str, Any], origin: str) -> T:
    """Validate the content of a configuration.

    Args:
        model: its type.
        content: keys and values.
        origin: where they come from, for messages.

    Raises:
        UserError: there is one mistake.
        UserErrors: there are several.
    """
    _check_moderate(content, "", origin)
    try:
        return model.model_validate(read_as_meant(model, content))
    except ValidationError as error:
        found = list(explain(model, error))
        if len(found) > 1:
            raise UserErrors(origin, found) from error
        raise UserError(f"{origin}: {found[0]}") from error


def _check_moderate(value: Any, key: str, origin: str) -> None:
    """No number of a configuration needs more than 64 bits; libraries that get one end in as many ways as there are."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        shown = str(value) if abs(value) < 10**30 else f"a number of {value.bit_length()} bits"
        raise UserError(f"{origin}: {key}: {shown} does not fit into 64 bits")
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        _check_moderate(inner, f"{key}.{name}" if key else str(name), origin)


def explain(model: type[BaseModel], error: ValidationError) -> Iterator[str]:
    """One line for each mistake: the key, what is wrong, and what to type instead."""
    problems: dict[str, list[Any]] = {}
    for problem in error.errors():
        problems.setdefault(_key(model, problem["loc"]), []).append(problem)
    unknown = [key for key, found in problems.items() if found[0]["type"] == "extra_forbidden"]
    hints = {key: _near_key(model, key, problems[key][0]["loc"]) for key in unknown}
    for key, hint in hints.items():
        yield f"unknown key '{key}'; {hint}"
    for key, found in problems.items():
        parent, _, name = key.rpartition(".")
        meant = [hint for one, hint in hints.items() if one.rpartition(".")[0] == parent]
        if key in hints or (found[0]["type"] == "missing" and f"did you mean '{name}'?" in meant):
            continue  # what is missing was misspelt
        yield f"{key}: {_wrong(found, model)}" if key else _message(found[0])


def near(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """'; did you mean ...?' where a known name is like `name`, else ''."""
    by_case = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(name.casefold(), by_case, n=1, cutoff=cutoff)
    return f"; did you mean '{by_case[found[0]]}'?" if found else ""


def _message(problem: Any) -> str:
    return str(problem["msg"]).removeprefix("Value error, ")


def _wrong(problems: list[Any], model: type[BaseModel]) -> str:
    """What is wrong with the value of one key; several problems are those of a union's members."""
    first = problems[0]
    kind, value = first["type"], first["input"]
    if kind == "missing":
        return "a value is missing" if isinstance(first["loc"][-1], int) else "is missing"
    if kind == "union_tag_invalid":
        known = [each.strip(" '") for each in first["ctx"]["expected_tags"].split(",")]
        return _no_such(first["ctx"]["tag"], known)
    if kind == "union_tag_not_found":
        which = str(first["ctx"]["discriminator"]).strip("'")
        return f"has no '{which}', which says what it is ({_choices(_names(model, first['loc'], which))})"
    if kind == "literal_error" and len(problems) == 1:
        return _no_such(value, _literals(first))
    bounds = [each for each in problems if each["type"] in ("value_error", "assertion_error") or "ctx" in each]
    bounds = [each for each in bounds if each["type"] != "literal_error"]
    if bounds and not _wanted(bounds[0]):
        message = _message(bounds[0])
        return message.replace("Input should be", "must be") + (
            "" if message == bounds[0]["msg"][13:] else f", not {value}"
        )
    wanted = dict.fromkeys(text for each in problems if (text := _wanted(each)))
    if WANTED["float"] in wanted:  # a whole number is one
        wanted.pop(WANTED["int"], None)
    return f"{value!r} is not {' or '.join(wanted)}"


def _wanted(problem: Any) -> str:
    if problem["type"] == "literal_error":
        return _choices(_literals(problem))
    for start, text in WANTED.items():
        if problem["type"].startswith(start):
            return text
    return ""


def _literals(problem: Any) -> list[str]:
    return [each.strip(" '") for each in problem["ctx"]["expected"].replace(" or ", ", ").split(",")]


def _no_such(value: Any, known: list[str]) -> str:
    meant = SAME.get(str(value).lower())
    hint = f"; did you mean '{meant}'?" if meant in known else near(str(value), known, 0.5)
    return f"there is no '{value}'{hint} (choose of {_choices(known)})"


def _choices(known: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in known)


def _key(model: type[BaseModel], loc: tuple[int | str, ...]) -> str:
    """'a.b.0' of a location, without the tags and types that pydantic puts between."""
    kept, models = [], {model}
    for part in loc:
        if isinstance(part, int):
            kept.append(str(part))
            continue
        inner = [owner.model_fields[part].annotation for owner in models if part in owner.model_fields]
        tagged = {owner for owner in models if _tag(owner) == part}
        if tagged and not inner:
            models = tagged
        elif inner:
            kept.append(part)
            models = {each for annotation in inner for each in _models_in(annotation)}
        elif part == loc[-1] and models and "[" not in part:
            kept.append(part)  # unknown
        elif not models and part.isidentifier() and part == loc[-1]:
            continue  # a member of a union: 'int', 'str'
    return ".".join(kept)


def _near_key(model: type[BaseModel], key: str, loc: tuple[int | str, ...]) -> str:
    """The key that was meant: one like it beside it, or one of its name anywhere."""
    name = key.rpartition(".")[2]
    valid = sorted(_fields(model, [str(part) for part in loc[:-1]]))
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == name]
    found = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    if elsewhere and (not found or difflib.SequenceMatcher(None, name, found[0]).ratio() < 0.75):
        return f"did you mean '{elsewhere[0]}'?"
    return f"did you mean '{found[0]}'?" if found else f"valid keys: {', '.join(valid)}"


def _paths(model: type[BaseModel], before: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{before}{name}"
        for kind in alternatives(field.annotation):
            if is_model(kind):
                yield from _paths(kind, f"{before}{name}.")


def _names(model: type[BaseModel], loc: tuple[int | str, ...], which: str) -> list[str]:
    """The values of `which` that the kinds of a union at `loc` have."""
    models = {model}
    for part in loc:
        inner = {m for owner in models if part in owner.model_fields
                 for m in _models_in(owner.model_fields[str(part)].annotation)}  # fmt: skip
        models = inner or models
    fields = [owner.model_fields[which] for owner in models if which in owner.model_fields]
    return sorted(str(typing.get_args(field.annotation)[0] if field.is_required() else field.default)
                  for field in fields)  # fmt: skip


def _tag(model: type[BaseModel]) -> Any:
    return model.model_fields["name"].default if "name" in model.model_fields else None


def _fields(model: type[BaseModel], loc: list[str]) -> set[str]:
    """Names of the fields at `loc`; pydantic puts the tag of a union and list indices into a location too."""
    models = {model}
    for part in loc:
        inner: set[type[BaseModel]] = set()
        for owner in models:
            if part in owner.model_fields:
                inner |= _models_in(owner.model_fields[part].annotation)
        tagged = {m for m in models if _tag(m) == part}
        models = inner or tagged or models
    return {name for owner in models for name in owner.model_fields}


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        if issubclass(annotation, Config):
            return set(annotation.kinds())
        return {annotation} if issubclass(annotation, BaseModel) else set()
    return {found for argument in typing.get_args(annotation) for found in _models_in(argument)}
