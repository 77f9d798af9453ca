"""The jobs of the tables: shards, pre-trainings, trainings that choose a rate, and results on tested patients."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from choosing import SEEDS, TESTED, cells, records_of, test_model, trained

from payoffs.imagenet import ImageNet, probe
from payoffs.jobs import Job
from payoffs.places import Places
from payoffs.tables import SCRATCH
from payoffs.training import pretrain, train
from scanfoundry.finetune.metrics.intervals import Statistic
from scanfoundry.finetune.metrics.weighted import Record
from scanfoundry.finetune.model_file import load_model


@dataclass(frozen=True)
class Outcome:
    """How far an arm has come at a number of labels.

    Attributes:
        scores: by rate, the metric on the validation patients, of the trials that are done.
        rate: the best one; None while some were not tried.
        records: of the tested cases, for each labelled subset; None where they are not there yet.
    """

    scores: dict[float, float]
    rate: float | None
    records: list[list[Record]] | None


class Work:
    """All jobs of the tables."""

    def __init__(self, places: Places) -> None:
        self.places, self.tables = places, places.tables
        self._statistics: dict[str, Statistic] = {}

    def jobs(self, only: str = "") -> list[Job]:
        """The results that are wanted, the most informative first.

        The claim of each task (scratch and its first arm) comes first, at its smallest and middle number of labels;
        then the other arms there; then the largest numbers.

        Args:
            only: one task; '' for all.
        """
        found = []
        for number, name in enumerate(self.tables.tasks):
            if only in ("", name):
                arms = [arm for arm in self.tables.tasks[name].arms if self.places.imagenet or not self.imagenet(arm)]
                for place, arm in enumerate([SCRATCH, *arms]):
                    for level, shots in enumerate(self.tables.tasks[name].shots):
                        rank = (int(level > 1), int(place > 1), level, number, place)
                        found.append(self.result(name, arm, shots, rank))
        return found

    def shards(self, name: str) -> Job:
        """A data set's shards."""
        done = (self.places.shards(name) / "manifest.json").exists
        return Job(f"shards of {name}", f"shards {name}", (0,), 2, done, partial(self.places.build, name))

    def start(self, name: str) -> Job:
        """A pre-training."""
        table = self.tables.pretrainings[name]
        needs = [self.shards(pool) for pool in table.pool] + ([self.start(table.init)] if table.init else [])
        done, run = (self.places.start(name) / "model.safetensors").exists, partial(pretrain, self.places, name)
        return Job(f"pre-training {name}", f"start {name}", (1,), table.minutes, done, run, tuple(needs))

    def trial(self, task: str, arm: str, rate: float, shots: int, rank: tuple[int, ...]) -> Job:
        """The training of one arm at one rate on the first labelled subset."""
        start = None if arm == SCRATCH else self.tables.arms[arm].start
        needs = () if start is None else (self.start(start),)
        folder, minutes = self.places.study(task, arm, rate, shots), self.tables.tasks[task].minutes
        return Job(
            f"{task}, {shots} labels: {arm} at a rate of {rate:g}",
            f"trial {task} {shots}",
            rank,
            minutes,
            partial(trained, folder, SEEDS[:1]),
            partial(train, self.places, task, arm, rate, shots, SEEDS[:1]),
            needs,
        )

    def result(self, task: str, arm: str, shots: int, rank: tuple[int, ...]) -> Job:
        """One row of the page: the rate chosen, the other subsets trained at it, all of them tested."""
        rates, minutes = self.tables.rates(task, arm), self.tables.tasks[task].minutes

        def done() -> bool:
            return self.outcome(task, arm, shots).records is not None

        if self.imagenet(arm):
            needs = (self.result(task, SCRATCH, shots, rank),)  # whose labelled subsets it takes
            run = partial(self._probe, task, arm, shots)
            return Job(f"{task}, {shots} labels: {arm}, tested", f"probe {task}", rank, 3, done, run, needs)
        return Job(
            f"{task}, {shots} labels: {arm}, tested",
            f"result {task} {shots}",
            rank,
            minutes * (len(SEEDS) - 1),
            done,
            partial(self._finish, task, arm, shots),
            tuple(self.trial(task, arm, rate, shots, rank) for rate in rates),
        )

    def _finish(self, task: str, arm: str, shots: int) -> None:
        rate = self.outcome(task, arm, shots).rate
        assert rate is not None, "a result needs its trials"
        folder = self.places.study(task, arm, rate, shots)
        if not trained(folder, SEEDS):
            train(self.places, task, arm, rate, shots, SEEDS)
        cases = self.places.cases(task).cases
        torch.set_num_threads(self.places.threads)  # of this lane's own thread
        for cell in cells(folder, SEEDS):
            if not (cell / TESTED).exists():
                test_model(cell, cases)

    def imagenet(self, arm: str) -> bool:
        """Whether an arm is the probe of ImageNet's features."""
        return arm != SCRATCH and self.tables.arms[arm].imagenet

    def _subsets(self, task: str, arm: str, shots: int) -> list[Path]:
        return [self.places.work / "probes" / task / f"{arm}-{shots}-seed{seed}" for seed in SEEDS]

    def _probe(self, task: str, arm: str, shots: int) -> None:
        rate = self.outcome(task, SCRATCH, shots).rate
        assert rate is not None, "it needs the trials from scratch"
        assert self.places.imagenet is not None, "it needs the weights"
        torch.set_num_threads(self.places.threads)  # of this lane's own thread
        network, cases = ImageNet(self.places.imagenet), self.places.cases(task).cases
        trials = cells(self.places.study(task, SCRATCH, rate, shots), SEEDS)
        for trial, out in zip(trials, self._subsets(task, arm, shots), strict=True):
            probe(network, trial, cases, out)

    def outcome(self, task: str, arm: str, shots: int) -> Outcome:
        """What there is of an arm."""
        if self.imagenet(arm):
            files = [folder / TESTED for folder in self._subsets(task, arm, shots)]
            return Outcome({}, None, _read(files))
        rates, scores = self.tables.rates(task, arm), {}
        for rate in rates:
            folder = self.places.study(task, arm, rate, shots)
            if trained(folder, SEEDS[:1]):
                cell = cells(folder, SEEDS[:1])[0]
                scores[rate] = float(self.statistic(task, cell)(records_of(cell)))
        if len(scores) < len(rates):
            return Outcome(scores, None, None)
        rate = max(scores, key=lambda each: scores[each])
        files = [cell / TESTED for cell in cells(self.places.study(task, arm, rate, shots), SEEDS)]
        return Outcome(scores, rate, _read(files))

    def statistic(self, task: str, cell: Path | None = None) -> Statistic:
        """The metric of a task, which one of its models tells; `cell` has one where none was asked yet."""
        if task not in self._statistics:
            assert cell is not None, "no trial of the task was read"
            self._statistics[task] = load_model(cell)[0].all_metrics()[self.tables.tasks[task].metric]
        return self._statistics[task]


def _read(files: list[Path]) -> list[list[Record]] | None:
    return [json.loads(path.read_text()) for path in files] if all(path.exists() for path in files) else None
