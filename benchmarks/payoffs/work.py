"""The jobs of the tables: shards, pre-trainings, trainings that choose a rate, and results on tested patients."""

import json
from functools import partial
from pathlib import Path

from payoffs.jobs import Job
from payoffs.places import Places
from payoffs.tables import SCRATCH
from payoffs.training import cells, pretrain, score_of, test, train, trained
from scanfoundry.configs.files import write_text
from scanfoundry.finetune.metrics.weighted import Record

SEEDS = (0, 1, 2)  # labelled subsets; the first chooses the rate
TESTED = "tested.json"


class Work:
    """All jobs of the tables."""

    def __init__(self, places: Places) -> None:
        self.places, self.tables = places, places.tables

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
                for place, arm in enumerate([SCRATCH, *self.tables.tasks[name].arms]):
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
        needs = () if arm == SCRATCH else (self.start(self.tables.arms[arm].start),)
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
        return Job(
            f"{task}, {shots} labels: {arm}, tested",
            f"result {task} {shots}",
            rank,
            minutes * (len(SEEDS) - 1),
            lambda: self.tested(task, arm, shots) is not None,
            partial(self._finish, task, arm, shots),
            tuple(self.trial(task, arm, rate, shots, rank) for rate in rates),
        )

    def _finish(self, task: str, arm: str, shots: int) -> None:
        rate = self.chosen(task, arm, shots)
        assert rate is not None, "a result needs its trials"
        folder = self.places.study(task, arm, rate, shots)
        if not trained(folder, SEEDS):
            train(self.places, task, arm, rate, shots, SEEDS)
        for cell in cells(folder, SEEDS):
            if not (cell / TESTED).exists():
                write_text(cell / TESTED, json.dumps(test(self.places, task, cell)))

    def scores(self, task: str, arm: str, shots: int) -> dict[float, float]:
        """By rate: the metric on the validation patients, of the trials that are done."""
        table, found = self.tables.tasks[task], {}
        for rate in self.tables.rates(task, arm):
            folder = self.places.study(task, arm, rate, shots)
            if trained(folder, SEEDS[:1]):
                found[rate] = score_of(cells(folder, SEEDS[:1])[0], table.metric)
        return found

    def chosen(self, task: str, arm: str, shots: int) -> float | None:
        """The best rate; None while some were not tried."""
        scores = self.scores(task, arm, shots)
        complete = len(scores) == len(self.tables.rates(task, arm))
        return max(scores, key=lambda rate: scores[rate]) if complete else None

    def tested(self, task: str, arm: str, shots: int) -> list[list[Record]] | None:
        """Records of the tested cases for each subset; None where they are not there yet."""
        rate = self.chosen(task, arm, shots)
        files = self._files(task, arm, rate, shots) if rate is not None else []
        there = bool(files) and all(path.exists() for path in files)
        return [json.loads(path.read_text()) for path in files] if there else None

    def _files(self, task: str, arm: str, rate: float, shots: int) -> list[Path]:
        return [cell / TESTED for cell in cells(self.places.study(task, arm, rate, shots), SEEDS)]
