"""Jobs with what they need, what they cost and how much they tell; run in that order within a budget of time."""

import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path

from scanfoundry.configs.files import write_text


@dataclass(frozen=True)
class Job:
    """One piece of work that is done whole, and never again.

    rank: what is run first; jobs that another one needs are run before it, whatever their own rank.
    kind: jobs of one kind take about the same time.
    """

    name: str
    kind: str
    rank: tuple[int, ...]
    minutes: float  # until a job of its kind was timed
    done: Callable[[], bool]
    run: Callable[[], None]
    needs: tuple["Job", ...] = field(default=(), repr=False)


class Clock:
    """Seconds that jobs took, by kind, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.taken: dict[str, list[float]] = json.loads(path.read_text()) if path.exists() else {}

    def expected(self, job: Job) -> float:
        """Seconds that a job will take."""
        known = self.taken.get(job.kind)
        return sorted(known)[len(known) // 2] if known else 60 * job.minutes

    def took(self, job: Job, seconds: float) -> None:
        """Remember how long a job took."""
        self.taken.setdefault(job.kind, []).append(round(seconds, 1))
        write_text(self._path, json.dumps(self.taken))


def in_order(jobs: Iterable[Job]) -> list[Job]:
    """All jobs and what they need, each once, by rank, needs first."""
    ordered: dict[str, Job] = {}

    def add(job: Job) -> None:
        if job.name not in ordered:
            for need in sorted(job.needs, key=lambda each: each.rank):
                add(need)
            ordered[job.name] = job

    for job in sorted(jobs, key=lambda each: each.rank):
        add(job)
    return list(ordered.values())


class _Run:
    """Jobs on their way: what is left over, what waits, what runs."""

    def __init__(self, jobs: Iterable[Job], clock: Clock, budget: float | None, say: Callable[[str], None]) -> None:
        self.waiting = [job for job in in_order(jobs) if not job.done()]
        self.left, self.running = set[str](), dict[Future[float], Job]()
        self._clock, self._budget, self._say, self._started = clock, budget, say, time.monotonic()

    def next(self) -> Job | None:
        """The first job that can start now; what cannot start in time is left over, with all that needs it."""
        held = {job.name for job in [*self.running.values(), *self.waiting]}
        for job in list(self.waiting):
            needs = {need.name for need in job.needs}
            seconds = self._clock.expected(job)
            spent = time.monotonic() - self._started
            if needs & self.left or (self._budget is not None and spent + seconds > self._budget):
                self.left.add(job.name)
                held.discard(job.name)
                self.waiting.remove(job)
            elif not needs & held:
                self.waiting.remove(job)
                self._say(f"{job.name} (about {seconds / 60:.0f} min)")
                return job
        return None

    def settle(self) -> None:
        """Wait until a job that runs has ended; its error is raised."""
        ended, _ = wait(self.running, return_when=FIRST_COMPLETED)
        for future in ended:
            self._clock.took(self.running.pop(future), future.result())


def run_all(jobs: Iterable[Job], clock: Clock, budget: float | None, say: Callable[[str], None], lanes: int = 1) -> int:
    """Run what is not done yet; with a budget, what still fits into it.

    A job that does not fit is passed over with all that needs it, and a cheaper one behind it takes its place.

    Args:
        jobs: what is wanted.
        clock: knows how long jobs take.
        budget: seconds, None for no limit.
        say: takes a line for people.
        lanes: how many run at a time.

    Returns:
        How many jobs are left.
    """
    state = _Run(jobs, clock, budget, say)
    with ThreadPoolExecutor(lanes) as pool:
        while True:
            while len(state.running) < lanes and (job := state.next()) is not None:
                state.running[pool.submit(_seconds, job)] = job
            if not state.running:
                return len(state.left)
            state.settle()


def _seconds(job: Job) -> float:
    started = time.monotonic()
    job.run()
    return time.monotonic() - started
