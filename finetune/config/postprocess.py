"""What post-processing removes from a label map, as part of `model.json`."""

from pydantic import Field

from scanfoundry.configs.base import Config


class ClassRule(Config):
    """What is removed of one class."""

    largest: bool = False  # all components but the largest
    min_mm3: float = Field(default=0.0, ge=0)  # components smaller than this
