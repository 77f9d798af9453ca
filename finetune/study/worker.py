"""A process that runs trials of a study: `python -m scanfoundry.finetune.study.worker '{"run_dir": ...}'`.

It needs the run folder alone, whose configuration it reads and whose trials it claims one after the other, as often as
there are some that nobody runs and that are not finished. Whoever started it may follow it through a pipe, on whose
end it ends, too.
"""

import os
import sys
import threading
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import read_yaml
from scanfoundry.datasets.readers.scratch import kept_below
from scanfoundry.finetune.config.study import FinetuneConfig
from scanfoundry.finetune.study.budget import Budget
from scanfoundry.finetune.study.prepare import prepare
from scanfoundry.finetune.study.run_folder import CONFIG, raise_if_unwritable
from scanfoundry.finetune.study.runner import TrialRunner
from scanfoundry.finetune.study.shared_check import checked_by_parent
from scanfoundry.finetune.study.trial import TrialResult
from scanfoundry.finetune.training.interrupts import Stop, Stopped


class Job(BaseModel):
    """What a worker is started with.

    threads: of torch, as many as in the process that started it, since the bits of a sum depend on it.
    seconds, trials: of a budget, what is left for this worker and how many trials it is expected to run.
    events: descriptor of the pipe that it writes to; alive: of one that ends when it shall end.
    checked: descriptor of what was found when the cases were checked, see `shared_check`; None: they are checked here.
    """

    run_dir: Path
    threads: int
    seconds: float | None = None
    trials: int = 1
    events: int | None = None
    alive: int | None = None
    checked: int | None = None


class Events:
    """The display of a worker: what happens is sent to the process that started it, if there is one."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def send(self, *event: Any) -> None:
        """One event: its name, then plain values."""
        if self._connection is not None:
            with suppress(BrokenPipeError):
                self._connection.send(event)

    def begin(self, name: str, steps: int | None, tests: int) -> "Events":
        """See `StudyDisplay.begin`."""
        self.send("begin", name, steps, tests)
        return self

    def finished(self, name: str, result: TrialResult) -> None:
        """See `StudyDisplay.finished`."""
        self.send("finished", name, result)

    def log(self, line: str) -> None:
        """See `StudyDisplay.log`."""
        self.send("log", line)

    def step(self, step: int, loss: float) -> None:
        """See `TrialDisplay.step`."""
        self.send("step", step, loss)

    def tested(self, n: int) -> None:
        """See `TrialDisplay.tested`."""
        self.send("tested", n)

    def end(self) -> None:
        """See `TrialDisplay.end`."""
        self.send("end")


def work(job: Job, events: Events) -> None:
    """Run trials until none is left to claim.

    Raises:
        UserError: a mistake in data or configuration, or nothing can be written.
        Stopped: a signal came; what was running is saved.
    """
    content = read_yaml(job.run_dir / CONFIG)
    config = FinetuneConfig.model_validate(content | {"run_dir": job.run_dir})
    with Stop(quiet=True) as stop, kept_below(job.run_dir):
        try:
            study = prepare(config, notes=False, known=None if job.checked is None else checked_by_parent(job.checked))
            budget = Budget(job.seconds, job.trials) if job.seconds is not None else None
            TrialRunner(study, stop, budget).run_unclaimed(events)
        except OSError as error:
            raise_if_unwritable(job.run_dir, error)


def main(text: str) -> None:
    """Work, and send how it ended."""
    job = Job.model_validate_json(text)
    events = Events(None if job.events is None else Connection(job.events, readable=False))
    if job.alive is not None:
        threading.Thread(target=_end_with, args=(job.alive,), daemon=True).start()
    torch.set_num_threads(job.threads)
    try:
        work(job, events)
    except Stopped as stopped:
        events.send("stopped", str(stopped))
    except UserError as error:
        events.send("mistake", str(error))
    except Exception:
        events.send("failed", traceback.format_exc())
    os._exit(0)  # nothing to clean up, and torch's threads sometimes abort an interpreter that ends


def _end_with(descriptor: int) -> None:
    """End this process when the one that started it is gone."""
    os.read(descriptor, 1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
