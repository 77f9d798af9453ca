"""How far a study is: bars on a terminal; elsewhere, as in a job's log, a line a minute and one for each trial."""

import logging
import time
from types import TracebackType
from typing import Protocol

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from scanfoundry.configs.console import Console
from scanfoundry.finetune.study.trial import TrialResult

LINE_EVERY_S = 60.0
log = logging.getLogger(__name__)


class ShowsTrial(Protocol):
    """What shows how far one trial is."""

    def step(self, step: int, loss: float) -> None:
        """`step` steps are done."""

    def tested(self, n: int) -> None:
        """`n` test cases are done."""

    def end(self) -> None:
        """The trial is over."""


class ShowsStudy(Protocol):
    """What shows how far a study is: a display, or the way to the process that has it."""

    def begin(self, name: str, steps: int | None, tests: int) -> ShowsTrial:
        """A trial is about to be trained for so many steps (None: by time), then tested."""
        ...

    def log(self, line: str) -> None:
        """A line for people."""

    def finished(self, name: str, result: TrialResult) -> None:
        """A trial is finished."""


class StudyDisplay:
    """Context manager around the trials of a study."""

    def __init__(self, trials: int, console: Console | None = None, line_every_s: float = LINE_EVERY_S) -> None:
        console = console or Console(stderr=True, soft_wrap=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bars = Progress(*columns, TextColumn("{task.fields[note]}"), console=console)
        self._finished: set[str] = set()
        self._whole = self._bars.add_task("trials", total=trials, note="")
        self._every, self._printed = line_every_s, time.monotonic()

    def __enter__(self) -> "StudyDisplay":
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bars.stop()

    def begin(self, name: str, steps: int | None, tests: int) -> "TrialDisplay":
        """A trial is about to be trained for so many steps (None: by time), then tested."""
        return TrialDisplay(self, name, steps, tests, self._bars.add_task(name, total=steps, note=""))

    def log(self, line: str) -> None:
        """A line, which a terminal shows above the bars."""
        log.info("%s", line)

    def finished(self, name: str, result: TrialResult) -> None:
        """A trial is there, trained now or before; counted once."""
        if name in self._finished:
            return
        self._finished.add(name)
        if not self._bars.console.is_terminal:
            self._print(f"{name}: {result.steps} steps in {result.seconds:.0f} s, tested")
        self._bars.advance(self._whole)

    def update(self, task: TaskID, note: str, line: str, completed: int | None = None) -> None:
        """Move a trial's bar; now and then print `line` where nobody sees the bar."""
        self._bars.update(task, completed=completed, note=note)
        if not self._bars.console.is_terminal and time.monotonic() >= self._printed + self._every:
            self._print(line)

    def remove(self, task: TaskID) -> None:
        """Take a trial's bar away."""
        self._bars.remove_task(task)

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        log.info("%s", line)


class TrialDisplay:
    """How far one trial is."""

    def __init__(self, display: StudyDisplay, name: str, steps: int | None, tests: int, task: TaskID) -> None:
        self._display, self._name, self._steps, self._tests, self._task = display, name, steps, tests, task

    def step(self, step: int, loss: float) -> None:
        """`step` steps are done."""
        of = "" if self._steps is None else f" of {self._steps}"
        line = f"{self._name}: step {step}{of}, loss {loss:.3f}"
        self._display.update(self._task, f"loss {loss:.3f}", line, step)

    def tested(self, n: int) -> None:
        """`n` test cases are done."""
        note = f"tested {n}/{self._tests}"
        self._display.update(self._task, note, f"{self._name}: {note}")

    def end(self) -> None:
        """Its bar goes."""
        self._display.remove(self._task)
