"""The base class of every configuration."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """Strict and frozen: an unknown key is refused, a value never changes after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)
