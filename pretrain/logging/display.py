"""What people see of a running training: a progress bar or plain lines."""

import logging

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from scanfoundry.configs.console import Console
from scanfoundry.configs.text import printable

log = logging.getLogger(__name__)


class Display:
    """A bar on a terminal; in a log file a plain line every twentieth of the run."""

    def __init__(self, steps: int, start: int, what: str) -> None:
        self._console = Console(stderr=True)
        self._steps, self._every = steps, max(1, steps // 20)
        self._what = what
        self._bar: Progress | None = None
        if self._console.is_terminal:
            self._bar = Progress(
                TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"), console=self._console,
            )  # fmt: skip
            self._bar.start()
            self._task = self._bar.add_task(what, total=steps, completed=start, note="")

    def update(self, step: int, note: str) -> None:
        """Show that `step` steps are done."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, note=note)
        elif step % self._every == 0 or step == self._steps:
            log.info("%s %d/%d %s", self._what, step, self._steps, note)

    def info(self, text: str) -> None:
        """Tell one line, which a terminal shows above the bar."""
        log.info("%s", printable(text))

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
