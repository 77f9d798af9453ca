"""The tables that `payoff.py` reads: data sets, tasks, pre-trainings, and the ways to train from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from scanfoundry.configs.base import Config
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import read_yaml

SCRATCH = "scratch"


class People(Config):
    """A table of the data set that names the patient (or the lesion) of each file."""

    table: str
    file: str  # its columns
    patient: str


class DataSet(Config):
    """Scans of one kind, as they lie below the folder of data sets."""

    folder: str
    images: str
    modality: str
    patient_regex: str | None = None
    people: People | None = None


class TaskTable(Config):
    """A task: its labels, how it is trained, and what is tried."""

    data: str  # a data set
    labels: str
    study: dict[str, Any]  # of the fine-tuning's configuration: task, plan, schedule, augmentation, inference
    backbone: dict[str, Any]
    shots: list[int]
    metric: str  # one of the task's, higher is better
    rates: list[float]  # each arm is trained at each of them
    arms: list[str]  # beside scratch; the first is the recipe that is claimed to help
    minutes: float  # of one training, until some were timed


class ArmTable(Config):
    """A way to train that is put beside the plain training from scratch."""

    start: str | None = None  # a pre-training; None: from scratch, by other means
    study: dict[str, Any] = {}  # of the fine-tuning's configuration: recipes, transfer, backbone; beats the task's
    rates: list[float] | None = None  # beats the task's: what is fitted in closed form has none to choose
    imagenet: bool = False  # no training: a probe of features of ImageNet, see `imagenet.py`


class Pretraining(Config):
    """A pre-training; with `task` a supervised one, on all training labels of a task."""

    pool: list[str] = []  # data sets
    weights: dict[str, float] = {}  # how often a scan of each is drawn, beside the others; 1 where none is given
    config: dict[str, Any] = {}  # of the pre-training's configuration: objective, data, optimiser, steps
    backbone: dict[str, Any]
    init: str | None = None  # another pre-training that it goes on from
    task: str | None = None
    schedule: dict[str, Any] = {}  # of the supervised training
    minutes: float


class Tables(Config):
    """Everything that is compared."""

    sets: dict[str, DataSet]
    tasks: dict[str, TaskTable]
    arms: dict[str, ArmTable]
    pretrainings: dict[str, Pretraining]

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name, arm in self.arms.items():
            _known(name, [] if arm.start is None else [arm.start], self.pretrainings)
            if arm.start is None and not arm.imagenet and not arm.study:
                raise ValueError(f"{name}: it has no start and changes nothing, so it is training from scratch")
        for name, task in self.tasks.items():
            _known(name, [task.data], self.sets)
            _known(name, task.arms, self.arms)
        for name, each in self.pretrainings.items():
            _known(name, each.pool, self.sets)
            _known(name, list(each.weights), dict.fromkeys(each.pool))
            _known(name, [] if each.init is None else [each.init], self.pretrainings)
            _known(name, [] if each.task is None else [each.task], self.tasks)
        return self

    def rates(self, task: str, arm: str) -> list[float]:
        """The rates that are tried; none where nothing is trained."""
        if arm != SCRATCH and self.arms[arm].imagenet:
            return []
        own = None if arm == SCRATCH else self.arms[arm].rates
        return self.tasks[task].rates if own is None else own


def _known(of: str, names: list[str], among: Mapping[str, object]) -> None:
    for name in names:
        if name not in among:
            raise ValueError(f"{of}: '{name}' is not in the tables; there are {', '.join(among)}")


def read(path: Path) -> Tables:
    """The tables in a YAML file.

    Raises:
        UserError: it cannot be read, or holds what is not understood.
    """
    try:
        return Tables.model_validate(read_yaml(path))
    except ValueError as error:
        raise UserError(f"{path.name}: {error}") from error
