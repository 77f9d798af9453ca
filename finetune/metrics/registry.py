"""Metrics that plug-ins add to those that a task has of its own (its `metrics`, one line each)."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.plugins import plugins
from scanfoundry.finetune.config.tasks.registry import tasks
from scanfoundry.finetune.metrics.weighted import Record

DIRECTIONS = ("higher", "lower")


class Metric(NamedTuple):
    """An entry of a plug-in ("metric"), which may give it as a plain tuple.

    Attributes:
        task: the task's name; None: every task.
        name: by which results.json and the report call it.
        function: from the records of the test cases (see `Adapter.record`) to a number, nan where it is undefined.
        direction: 'higher' or 'lower', whichever is better.
    """

    task: str | None
    name: str
    function: Callable[[list[Record]], float]
    direction: str


@cache
def _added() -> list[Metric]:
    found = []
    for entry in plugins("metric"):
        if not isinstance(entry, tuple) or len(entry) != 4 or entry[3] not in DIRECTIONS:
            raise UserError(f"a plug-in's metric is {entry!r}: give (task, name, function, 'higher' or 'lower')")
        metric = Metric(*entry)
        if metric.task is not None and metric.task not in tasks():
            raise UserError(
                f"a plug-in adds the metric '{metric.name}' to the task {metric.task!r}, which there is not; the tasks "
                f"are {', '.join(tasks())}, and None stands for all of them"
            )
        found.append(metric)
    return found


def added_metrics(task: str) -> dict[str, Metric]:
    """The metrics of plug-ins for a task, by name.

    Raises:
        UserError: an entry is no metric or of a task that there is not, or two have one name.
    """
    found: dict[str, Metric] = {}
    for metric in _added():
        if metric.task in (None, task):
            if metric.name in found:
                raise UserError(f"two plug-ins add a metric '{metric.name}' of {task}")
            found[metric.name] = metric
    return found
