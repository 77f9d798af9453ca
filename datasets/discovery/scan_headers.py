"""Finds the DICOM among a build's files: worker processes read the headers, then the files are grouped to series."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Kind, Quarantined
from scanfoundry.datasets.discovery.sources import shown
from scanfoundry.datasets.processes import Died, Progress, Worker, ready
from scanfoundry.datasets.readers import Source

if TYPE_CHECKING:
    from scanfoundry.datasets.readers.dicom.headers import Survey

_FACTORY = "scanfoundry.datasets.discovery.scan_headers:worker"
_ENDINGS = (".dcm", ".dicom", ".ima")
_PORTION = 500  # files that a worker is told at a time; fewer are read in this process


def find_dicom(
    root: Path, files: Sequence[str], workers: int, progress: Progress
) -> tuple[list[Source], list[Quarantined]]:
    """The DICOM sources among `files` (relative to `root`), and each other file with the reason why it is none.

    Raises:
        ModuleNotFoundError: pydicom is not installed, and one of the files may be DICOM.
    """
    paths = [root / relative for relative in files]
    if find_spec("pydicom") is None and not any(_may_be_dicom(path) for path in paths):
        return [], [Quarantined(path=shown(relative), reason="not DICOM", kind="skipped") for relative in files]
    # Here: pydicom takes a third of a second to import, which a build without DICOM need not wait for.
    from scanfoundry.datasets.readers.dicom.grouping import group
    from scanfoundry.datasets.readers.dicom.headers import survey

    surveys = survey(paths) if len(paths) <= _PORTION else _parallel(paths, workers, progress)
    sources, refusals = group(surveys, root)
    none = [Quarantined(path=shown(path), reason=reason, kind=cast(Kind, kind)) for path, reason, kind in refusals]
    return sources, none


def _may_be_dicom(path: Path) -> bool:
    """Whether a file's name or first bytes are as DICOM begins: with a preamble, or with an element of group 2 or 8.

    Files of other kinds may begin so too. This only decides whether the package that reads DICOM is asked for.
    """
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:
        return False
    groups = (b"\2\0", b"\0\2", b"\10\0", b"\0\10")
    return path.suffix.lower() in _ENDINGS or head[128:] == b"DICM" or head[:2] in groups


def worker(connection: Connection) -> Callable[[list[Path]], Iterator[list["Survey"]]]:
    """Factory for `processes.Worker`."""
    from scanfoundry.datasets.readers.dicom.headers import survey

    return lambda paths: iter([survey(paths)])


def _parallel(paths: Sequence[Path], workers: int, progress: Progress) -> list["Survey"]:
    portions = [list(paths[begin : begin + _PORTION]) for begin in range(0, len(paths), _PORTION)]
    waiting = deque(range(len(portions)))
    found: dict[int, list[Any]] = {}
    busy: dict[Worker, int] = {}
    crew = [Worker(_FACTORY) for _ in range(min(workers, len(portions)))]
    try:
        for each in crew:
            _hand(each, waiting, portions, busy)
        while busy:
            for each in ready(busy):
                number, reply = busy.pop(each), each.receive()
                if isinstance(reply, Died):
                    first = portions[number][0].parent
                    raise UserError(f"a process that reads DICOM headers in {first} died (exit status {reply.status})")
                found[number] = reply
                progress("reading headers", sum(map(len, found.values())), len(paths))
                _hand(each, waiting, portions, busy)
    finally:
        for each in crew:
            each.close()
    return [one for number in range(len(portions)) for one in found[number]]


def _hand(each: Worker, waiting: deque[int], portions: list[list[Path]], busy: dict[Worker, int]) -> None:
    if waiting:
        busy[each] = waiting.popleft()
        each.send(portions[busy[each]])
