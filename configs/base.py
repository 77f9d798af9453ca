"""The base class of every configuration."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and numpy both take


class Config(BaseModel):
    """Strict and frozen: an unknown key is refused, a value never changes after it was checked."""

    model_config = ConfigDict(extra="forbid", frozen=True)
