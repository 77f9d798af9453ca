"""Finds the DICOM among the files of a build: worker processes read headers, then files are grouped to series."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined, QuarantineKind
from scanfoundry.datasets.discovery.sources import shown
from scanfoundry.datasets.processes import Progress, Worker, WorkerDied, ready
from scanfoundry.datasets.readers import Source

if TYPE_CHECKING:
    from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader

_FACTORY = "scanfoundry.datasets.discovery.scan_headers:worker"
_ENDINGS = (".dcm", ".dicom", ".ima")
_PORTION = 500  # files that a worker is told at a time; fewer are read in this process


def find_dicom(
    root: Path, files: Sequence[str], workers: int, progress: Progress
) -> tuple[list[Source], list[Quarantined]]:
    """Find the DICOM sources among files.

    Args:
        root: folder of the files.
        files: paths below it, '/' between parts.
        workers: processes that read headers, where there are many files.
        progress: called with what is done, how much of it, and of how much.

    Returns:
        The sources, and a line for each file that is of none, with the reason.

    Raises:
        UserError: a worker process died.
        ModuleNotFoundError: pydicom is not installed, and one of the files may be DICOM.
    """
    paths = [root / relative for relative in files]
    if find_spec("pydicom") is None and not any(_may_be_dicom(path) for path in paths):
        return [], [Quarantined(path=shown(relative), reason="not DICOM", kind="skipped") for relative in files]
    # Here: pydicom takes a third of a second to import, which a build without DICOM need not wait for.
    from scanfoundry.datasets.readers.dicom.grouping import group
    from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers

    headers = scan_headers(paths) if len(paths) <= _PORTION else _parallel(paths, workers, progress)
    sources, refusals = group(headers, root)
    none = [
        Quarantined(path=shown(path), reason=reason, kind=cast(QuarantineKind, kind)) for path, reason, kind in refusals
    ]
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


def worker(connection: Connection) -> Callable[[list[Path]], Iterator[list["FileHeader"]]]:
    """Factory for `processes.Worker`."""
    from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers

    return lambda paths: iter([scan_headers(paths)])


def _parallel(paths: Sequence[Path], workers: int, progress: Progress) -> list["FileHeader"]:
    portions = [list(paths[begin : begin + _PORTION]) for begin in range(0, len(paths), _PORTION)]
    pending = deque(range(len(portions)))
    found: dict[int, list[Any]] = {}
    busy: dict[Worker, int] = {}
    pool = [Worker(_FACTORY) for _ in range(min(workers, len(portions)))]
    try:
        for each in pool:
            _hand(each, pending, portions, busy)
        while busy:
            for each in ready(busy):
                number, reply = busy.pop(each), each.receive()
                if isinstance(reply, WorkerDied):
                    first = portions[number][0].parent
                    raise UserError(f"a process that reads DICOM headers in {first} died (exit status {reply.status})")
                found[number] = reply
                progress("reading headers", sum(map(len, found.values())), len(paths))
                _hand(each, pending, portions, busy)
    finally:
        for each in pool:
            each.close()
    return [one for number in range(len(portions)) for one in found[number]]


def _hand(each: Worker, pending: deque[int], portions: list[list[Path]], busy: dict[Worker, int]) -> None:
    if pending:
        busy[each] = pending.popleft()
        each.send(portions[busy[each]])
