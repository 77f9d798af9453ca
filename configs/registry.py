"""Registries of configurations that are chosen by `name`: those of the project and those of plug-ins."""

from collections.abc import Iterable
from functools import reduce
from importlib import import_module
from operator import or_
from typing import Annotated, Any, TypeVar

from pydantic import Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.plugins import plugins

C = TypeVar("C", bound=Config)


def registered(kind: str, base: type[C], own: Iterable[type[C]]) -> dict[str, type[C]]:
    """The configurations of one kind by name: the project's `own`, then those that plug-ins add.

    Args:
        kind: one of `configs.plugins.KINDS`.
        base: the class that each of them derives from.
        own: the project's configurations.

    Raises:
        UserError: a plug-in adds something else, or a configuration of a name that is taken.
    """
    found = {name_of(config): config for config in own}
    for added in plugins(kind):
        if not (isinstance(added, type) and issubclass(added, base) and name_of(added)):
            raise UserError(f"a plug-in adds the {kind} {added!r}, which is no {base.__name__} with a default `name`")
        if name_of(added) in found:
            raise UserError(f"a plug-in adds a {kind} of the name '{name_of(added)}', which is taken; choose another")
        found[name_of(added)] = added
    return found


def resolve(place: Any) -> Any:
    """What 'module:attribute' names, imported now; anything that is no text as it is."""
    if not isinstance(place, str):
        return place
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


def name_of(config: type[Config]) -> str:
    """The default of a configuration's field `name`; empty where there is none."""
    field = config.model_fields.get("name")
    return field.default if field is not None and isinstance(field.default, str) else ""


class ByName:
    """Makes a field of a registry's base class the union of what is registered, told apart by `name`.

    The registry is read when the schema is built. Whoever has such a field defers that to the first use
    (`defer_build`): a plug-in may then import everything, also the class that has the field.
    """

    def __get_pydantic_core_schema__(self, source: type[Config], handler: GetCoreSchemaHandler) -> CoreSchema:
        return handler.generate_schema(choice(source.kinds()))


def choice(configs: Iterable[type[Config]]) -> Any:
    """The type of a field that is one of these configurations, whichever its `name` says."""
    return Annotated[reduce(or_, configs), Field(discriminator="name")]
