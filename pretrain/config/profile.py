"""Options of torch's profiler."""

from pydantic import Field, PositiveInt

from scanfoundry.configs.base import Config


class ProfileConfig(Config):
    """A trace of some steps, `<run>/profile/*.json.gz`, for chrome://tracing, Perfetto or TensorBoard.

    Each start of the run writes one, of its first process. Tracing costs time, and some megabytes a step.
    """

    steps: PositiveInt = 5
    start: int = Field(default=10, ge=1)  # steps of this start of the run that pass before: the first ones warm up
