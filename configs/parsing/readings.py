"""Values with only one possible reading, though not in the form that is asked for: `shots=5` for [5]."""

import types
import typing
from collections.abc import Iterator
from typing import Any

import yaml
from pydantic import BaseModel

from scanfoundry.configs.base import Config

SCALARS = (str, int, float, bool)


def read_as_meant(model: type[BaseModel], content: Any) -> Any:
    """Bring values into the form that a configuration asks for where they have only one reading.

    Args:
        model: type of the configuration.
        content: keys and values.

    Returns:
        A copy of the content. All other values are left to validation.
    """
    if not isinstance(content, dict):
        return content
    return {
        key: _read(model.model_fields[key].annotation, value) if key in model.model_fields else value
        for key, value in content.items()
    }


def alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, without None and without what only annotates them."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from alternatives(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for each in typing.get_args(annotation):
            yield from alternatives(each)
    elif is_model(annotation) and issubclass(annotation, Config):
        yield from annotation.kinds()
    elif annotation is not type(None):
        yield annotation


def is_model(kind: Any) -> bool:
    """Whether a type is a configuration."""
    return isinstance(kind, type) and not isinstance(kind, types.GenericAlias) and issubclass(kind, BaseModel)


def chosen(kinds: list[type[BaseModel]], content: Any) -> type[BaseModel] | None:
    """The kind of configuration that `content` names, or the only one there is."""
    if len(kinds) == 1:
        return kinds[0]
    name = content.get("name") if isinstance(content, dict) else None
    return next((kind for kind in kinds if "name" in kind.model_fields and kind.model_fields["name"].default == name),
                None)  # fmt: skip


def _read(annotation: Any, value: Any) -> Any:
    kinds = list(alternatives(annotation))
    models = [kind for kind in kinds if is_model(kind)]
    sequences = [kind for kind in kinds if typing.get_origin(kind) in (list, tuple)]
    if isinstance(value, str) and len(models) > 1 and len(models) == len(kinds):
        return {"kind" if all("kind" in kind.model_fields for kind in models) else "name": value}
    if isinstance(value, bool) and {int, float} & set(kinds) and bool not in kinds and str not in kinds:
        return str(value).lower()  # yes is no number, though Python takes it for 1
    if isinstance(value, dict) and (model := chosen(models, value)) is not None:
        return read_as_meant(model, value)
    if not sequences or len(sequences) < len([kind for kind in kinds if not is_model(kind)]):
        return value
    items = typing.get_args(sequences[0])
    if typing.get_origin(sequences[0]) is tuple and items[-1] is not Ellipsis:
        return value  # (D, H, W) has no reading of one number
    if isinstance(value, SCALARS):
        value = _as_list(items[0], value)
    elif isinstance(value, dict) and any(is_model(kind) for kind in alternatives(items[0])):
        value = [value]
    return [_read(items[0], each) for each in value] if isinstance(value, list) else value


def _as_list(item: Any, value: Any) -> Any:
    """[value]; of words with commas the words, but where a comma may be a part of a name."""
    kinds = list(alternatives(item))
    if any(is_model(kind) for kind in kinds) and not isinstance(value, str):
        return value
    if isinstance(value, str) and "," in value:
        if str in kinds or any(is_model(kind) for kind in kinds):
            return value
        return [yaml.safe_load(part) for part in value.split(",")]
    return [value]
