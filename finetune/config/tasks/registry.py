"""The tasks: one line for each, and those that plug-ins add."""

from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.plugins import plugins
from scanfoundry.configs.registry import ByName, name_of, resolve
from scanfoundry.finetune.config.tasks.base import TaskConfig

PACKAGE = "scanfoundry.finetune"
# Of each task its configuration and its adapter, as module:attribute; a plug-in ("task") may give the classes.
TASKS = (
    ("config.tasks.segmentation:SegmentationTask", "tasks.segmentation:Segmentation"),
    ("config.tasks.classification:ClassificationTask", "tasks.classification:Classification"),
    ("config.tasks.regression:RegressionTask", "tasks.regression:Regression"),
    ("config.tasks.detection:DetectionTask", "tasks.detection:Detection"),
)


@dataclass(frozen=True)
class TaskParts:
    """One line of the registry: the configuration of a task, and its adapter, which is imported on demand."""

    config: type[TaskConfig]
    _adapter: Any

    @property
    def adapter(self) -> Any:
        """The subclass of `finetune.task.Adapter`."""
        return resolve(self._adapter)


@cache
def tasks() -> dict[str, TaskParts]:
    """The registered tasks by name, in the order of their registration.

    Raises:
        UserError: a plug-in's entry is no pair of a configuration and an adapter, or its name is taken.
    """
    own = [tuple(f"{PACKAGE}.{place}" for place in line) for line in TASKS]
    found: dict[str, TaskParts] = {}
    for entry in (*own, *plugins("task")):
        if not isinstance(entry, tuple) or len(entry) != 2:
            raise UserError(f"a plug-in's task is {entry!r}: give (configuration class, adapter class)")
        config = resolve(entry[0])
        name = name_of(config)
        if not name or name in found:
            raise UserError(f"the task of {config.__module__} needs a name of its own, as a default: it has {name!r}")
        found[name] = TaskParts(config, entry[1])
    return found


def _configurations() -> tuple[type[TaskConfig], ...]:
    return tuple(parts.config for parts in tasks().values())


TaskConfig.registered = staticmethod(_configurations)


Task = Annotated[TaskConfig, ByName()]
