"""What a part is, where it runs, and what came of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Row = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """Where parts run.

    Attributes:
        device: 'cuda' or 'cpu'.
        small: tiny networks, crops and data, to see that everything runs.
        work: a folder for data and run folders; parts find there what earlier ones left.
    """

    device: str
    small: bool
    work: Path

    @property
    def threads(self) -> int | None:
        """Of a process on the CPU: where all is small, more would only wait for each other; None: torch decides."""
        return 1 if self.small else None

    @property
    def where(self) -> "torch.device":
        """The device of this process, as torch names it."""
        import torch

        return torch.device("cuda", torch.cuda.current_device()) if self.device == "cuda" else torch.device("cpu")


@dataclass(frozen=True)
class Part:
    """One thing to know.

    Attributes:
        name: in the table and for `--only`.
        what: is run, in a few words.
        seconds: that it may take on an H200, the work before and after what is timed included. It is begun when as much
            is left, and ended at twice as much.
        run: gives its row; called in the worker process.
        needs: modules without which it is left out.
    """

    name: str
    what: str
    seconds: float
    run: Callable[[Setting], Row]
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """What came of a part.

    Attributes:
        status: 'done', 'does not fit' (out of memory, which is a result), 'left out' or 'failed'.
        why: in one line, where it is not done.
        seconds: that it took.
        row: of a part that is done, and of one that does not fit.
        traceback: the end of it, of one that failed.
    """

    status: str
    why: str = ""
    seconds: float = 0.0
    row: Row | None = None
    traceback: str = ""

    def page(self) -> Row:
        """For a JSON file, without what is empty."""
        found = {"status": self.status, "why": self.why, "seconds": round(self.seconds, 1), "row": self.row,
                 "traceback": self.traceback}  # fmt: skip
        return {key: value for key, value in found.items() if value not in ("", None)}


class Refused(Exception):
    """A part that did not find what it was to show; the text says what."""
