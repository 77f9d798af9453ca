"""What a program tells while it works: records of `logging`, which one handler shows as plain lines.

Every module has `logging.getLogger(__name__)`. The command line and the processes of a job show what is logged, on
stderr; a program that imports scanfoundry decides by its own handlers, and without any sees warnings and errors, as
`logging` does. What a command was asked for (a table, a path, a report) is its output: it goes to stdout by `print`.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

NAME = "scanfoundry"


class ConsoleHandler(logging.Handler):
    """Writes each record to stderr as a plain line; an error begins with the program's name.

    The stream is the one of the moment: a progress bar and `text.guarded` put their own in its place.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, at once: the process may be killed the moment after."""
        try:
            text = self.format(record)
            print(f"{NAME}: {text}" if record.levelno >= logging.ERROR else text, file=sys.stderr, flush=True)
        except Exception:
            self.handleError(record)


@contextmanager
def shown_log() -> Iterator[None]:
    """Until the context ends, what scanfoundry logs (from INFO on) is shown once, by one `ConsoleHandler`."""
    logger = logging.getLogger(NAME)
    before = logger.handlers[:], logger.level, logger.propagate
    logger.handlers, logger.propagate = [ConsoleHandler()], False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
