"""Options of wandb."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from scanfoundry.configs.base import Config

Seconds = Annotated[float, Field(gt=0)]


class WandbConfig(Config):
    """wandb is off unless asked for; 'offline' writes below the run folder and needs no network.

    'online' becomes 'offline' where no connection comes about; `wandb sync` sends what was written then.
    """

    mode: Literal["off", "offline", "online"] = "off"
    project: str = "scanfoundry"
    name: str | None = None
    start_s: Seconds = 30.0  # to get a connection; nobody waits for it
    finish_s: Seconds = 15.0  # to send the rest at the end, for which the run does wait

    @field_validator("mode", mode="before")
    @classmethod
    def _yaml_off(cls, value: object) -> object:
        return "off" if value is False else value  # YAML reads a bare `off` as false
