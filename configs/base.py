"""The base class of every configuration."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take


class Config(BaseModel):
    """Strict and frozen: an unknown key and an infinite number are refused, a value never changes after it was checked.

    rivals: {key: {other: (keys, ...)}}: where `key` is typed on the command line and the file says `other`, the file's
    `keys` give way. Without a command line such a pair is refused by whoever declares it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    rivals: ClassVar[Mapping[str, Mapping[str, tuple[str, ...]]]] = {}
    registered: ClassVar[Callable[[], Iterable[type["Config"]]] | None] = None  # a registry sets it on its base class

    @classmethod
    def kinds(cls) -> tuple[type["Config"], ...]:
        """The classes of which a field of this type takes one: the class itself, or those of an open registry."""
        if cls.registered is None or "registered" not in vars(cls):
            return (cls,)
        return tuple(cls.registered())

    @classmethod
    def gives_way(cls, typed: Mapping[str, Any], content: Mapping[str, Any]) -> list[str]:
        """Further keys of the file's `content` that make no sense beside the values that were typed."""
        return []
