"""Trials of a study in several processes: started, shown, stopped together, replaced by each other."""

import math
import os
import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.study.budget import seconds_for_each
from scanfoundry.finetune.study.display import StudyDisplay, TrialDisplay
from scanfoundry.finetune.study.prepare import Study
from scanfoundry.finetune.study.runner import TrialRunner
from scanfoundry.finetune.study.shared_check import shared_check
from scanfoundry.finetune.study.worker import Job
from scanfoundry.finetune.training.interrupts import Stop, Stopped

GRACE = 20.0  # seconds for a worker to end after it was asked twice
POLL = 0.5  # seconds between two looks at whether somebody asked to stop


class Worker:
    """A process that runs trials; its events come through `connection`."""

    def __init__(self, job: Job) -> None:
        self.connection, remote = Pipe(duplex=False)
        alive, self._alive = os.pipe()  # the other end closes with this process, however it ends
        with_pipes = job.model_copy(update={"events": remote.fileno(), "alive": alive})
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "scanfoundry.finetune.study.worker", with_pipes.model_dump_json()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONSAFEPATH": "1"},  # `-m` would find modules of the folder that we are in first
                pass_fds=[remote.fileno(), alive, *([] if job.checked is None else [job.checked])],
                start_new_session=True,  # Ctrl-C is for the parent, which passes it on once
            )
        finally:
            remote.close()
            os.close(alive)
        self.shown: TrialDisplay | None = None

    def signal(self) -> None:
        """Ask it to stop; asked twice, it stops without saving."""
        with suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)

    def join(self) -> int:
        """Wait for its end, by force after a while; returns its exit status."""
        try:
            return self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()
        finally:
            self.connection.close()
            with suppress(OSError):
                os.close(self._alive)


class Workers:
    """Several workers on one study.

    Args:
        job: what each of them is started with.
        count: of the processes.
        stop: of this process; a signal is passed on.
        display: shows what they do.
    """

    def __init__(self, job: Job, count: int, stop: Stop, display: StudyDisplay) -> None:
        self._job, self._count, self._stop, self._display = job, count, stop, display
        self._ends: list[str] = []  # what workers that were stopped have saved
        self._error: Exception | None = None
        self._running: list[Worker] = []

    def run(self) -> None:
        """Wait until all have ended. Trials may be left, where a worker was killed.

        Raises:
            UserError: a trial failed by a mistake of data or configuration; the others are saved.
            Stopped: a signal came; what was running is saved.
        """
        passed_on = False
        try:
            with self._stop.soon():  # from the first one on: none is left behind by a signal in between
                for _ in range(self._count):
                    self._running.append(Worker(self._job))
                while self._running:
                    if not passed_on and (self._stop.asked is not None or self._error is not None):
                        passed_on = True
                        for worker in self._running:
                            worker.signal()
                    self._handle_events()
        finally:
            for worker in self._running:  # a second signal, or an error here
                worker.signal()
                worker.signal()
            for worker in self._running:
                worker.join()
        if self._error is not None:
            raise self._error
        if self._stop.asked is not None:
            raise Stopped(self._stop.asked, "; ".join(dict.fromkeys(self._ends)) or self._stop.at_once)

    def _handle_events(self) -> None:
        by_connection: dict[Any, Worker] = {worker.connection: worker for worker in self._running}
        for connection in wait(list(by_connection), POLL):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                name, *values = connection.recv()
            except (EOFError, OSError):
                self._ended(worker)
            else:
                self._handle(worker, name, values)

    def _ended(self, worker: Worker) -> None:
        self._running.remove(worker)
        status = worker.join()
        if worker.shown is not None:
            worker.shown.end()
            worker.shown = None
        if status and self._stop.asked is None and self._error is None:
            self._display.log(f"a process of the study ended with status {status}; its trial is taken over")

    def _handle(self, worker: Worker, name: str, values: list[Any]) -> None:
        if name == "begin":
            worker.shown = self._display.begin(*values)
        elif name in ("log", "finished"):
            getattr(self._display, name)(*values)
        elif name == "stopped":
            self._ends += values
        elif name == "mistake":
            self._error = self._error or UserError(*values)
        elif name == "failed":
            self._error = self._error or RuntimeError(f"in a process of the study:\n{values[0]}")
        elif worker.shown is not None:
            getattr(worker.shown, name)(*values)  # step, tested, end
            if name == "end":
                worker.shown = None


def run_in_processes(study: Study, runner: TrialRunner, stop: Stop, display: StudyDisplay) -> None:
    """Run the unfinished trials of a study in `config.processes` processes, if there are two trials at least.

    Raises:
        UserError: as `run_trial`.
        Stopped: a signal came; what was running is saved.
    """
    config, results = study.config, [runner.trial(name).finished() for name in study.names]
    count = min(config.processes, results.count(None))
    if count < 2:
        return
    seconds = None
    if config.budget:
        spent = [result.spent for result in results if result is not None]
        seconds = seconds_for_each(config.budget, len(results), spent, count)
    trials = math.ceil(results.count(None) / count)
    with shared_check(study.checked) as checked:
        job = Job(
            run_dir=config.run_dir, threads=torch.get_num_threads(), seconds=seconds, trials=trials, checked=checked
        )
        Workers(job, count, stop, display).run()
