"""Jobs with what they need, what they cost and how much they tell; run in that order within a budget of time."""

import json
import time
from collections.abc import Callable, Iterable
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

    def timed(self, job: Job) -> None:
        """Run a job and remember how long it took."""
        started = time.monotonic()
        job.run()
        self.taken.setdefault(job.kind, []).append(round(time.monotonic() - started, 1))
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


def run_all(jobs: Iterable[Job], clock: Clock, budget: float | None, say: Callable[[str], None]) -> int:
    """Run what is not done yet; with a budget, what still fits into it.

    A job that does not fit is passed over with all that needs it, and a cheaper one behind it takes its place.

    Args:
        jobs: what is wanted.
        clock: knows how long jobs take.
        budget: seconds, None for no limit.
        say: takes a line for people.

    Returns:
        How many jobs are left.
    """
    started, left = time.monotonic(), set[str]()
    for job in in_order(jobs):
        if job.done():
            continue
        seconds = clock.expected(job)
        over = budget is not None and time.monotonic() - started + seconds > budget
        if over or any(need.name in left for need in job.needs):
            left.add(job.name)
            continue
        say(f"{job.name} (about {seconds / 60:.0f} min)")
        clock.timed(job)
    return len(left)
