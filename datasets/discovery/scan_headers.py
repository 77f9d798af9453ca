"""Finds the DICOM among the files of a build: worker processes read headers, then files are grouped to series."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined
from scanfoundry.datasets.discovery.sources import regular_files, shown
from scanfoundry.datasets.discovery.survey import PORTION, Found, Group, Piece, Portion, lines_of, portions
from scanfoundry.datasets.processes import Progress, Worker, WorkerDied, ready
from scanfoundry.datasets.readers import Source
from scanfoundry.datasets.readers.scratch import scratch_folder

_FACTORY = "scanfoundry.datasets.discovery.scan_headers:worker"
T = TypeVar("T", Portion, Group)
_ENDINGS = (".dcm", ".dicom", ".ima")


def find_dicom(
    root: Path,
    files: Collection[str],
    workers: int,
    progress: Progress,
    kept: Path | None = None,
    share: float = 0.0,
) -> Found:
    """Find the DICOM sources among files.

    Args:
        root: folder of the files.
        files: paths below it, '/' between parts.
        workers: processes that read headers, where there are many files.
        progress: called with what is done, how much of it, and of how much.
        kept: folder for what was read of many files, so that the next call does not read it again; None: a temporary
            one. It names paths and patients.
        share: where in the files to begin, from 0 to 1: several processes that share `kept` begin apart.

    Returns:
        The sources, and a line for each file that is of none, with the reason.

    Raises:
        UserError: a worker process died.
        ModuleNotFoundError: pydicom is not installed, and one of the files may be DICOM.
    """
    if find_spec("pydicom") is None:
        none: list[Quarantined] = []
        regular = regular_files(((root, relative) for relative in files), none)
        if not any(_may_be_dicom(root / relative) for _, relative in regular):
            skipped = (Quarantined(path=shown(name), reason="not DICOM", kind="skipped") for _, name in regular)
            return [], [*none, *skipped]
    if len(files) <= PORTION:
        return _at_once(root, files)
    with nullcontext(kept) if kept is not None else scratch_folder() as folder:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it names patients
        return _surveyed(root, files, workers, progress, folder, share)


def _at_once(root: Path, files: Iterable[str]) -> Found:
    # Here: pydicom takes a third of a second to import, which a build without DICOM need not wait for.
    from scanfoundry.datasets.readers.dicom.grouping import group
    from scanfoundry.datasets.readers.dicom.headers.parse import scan_headers

    none: list[Quarantined] = []
    regular = regular_files(((root, relative) for relative in files), none)
    sources, refusals = group(scan_headers(root / relative for _, relative in regular), root)
    return sources, [*none, *lines_of(refusals)]


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


def worker(connection: Connection) -> Callable[[Portion | Group], Iterator[Any]]:
    """Factory for `processes.Worker`."""
    return lambda task: iter([task.run()])


def _surveyed(root: Path, files: Collection[str], workers: int, progress: Progress, kept: Path, share: float) -> Found:
    """What `find_dicom` returns, without all headers in this process."""
    sources: list[Source] = []
    none: list[Quarantined] = []
    pieces: dict[int, list[Piece]] = defaultdict(list)
    read = 0
    pool = [Worker(_FACTORY) for _ in range(min(workers, -(-len(files) // PORTION)))]
    try:
        for portion, (lines, found) in _answers(pool, portions(root, files, kept, share)):
            none += lines
            for part, piece in found.items():
                pieces[part].append(piece)
            read += len(portion.names)
            progress("reading headers", read, len(files))
        groups = [Group(root, tuple(sorted(each)), kept) for _, each in sorted(pieces.items())]
        first = int(share * len(groups))
        for _, (grouped, lines) in _answers(pool, [*groups[first:], *groups[:first]]):
            sources += grouped
            none += lines
    finally:
        for each in pool:
            each.close()
    return sorted(sources, key=lambda source: source.relative), none


def _answers(pool: Sequence[Worker], tasks: Iterable[T]) -> Iterator[tuple[T, Any]]:
    """Each task with what a worker answers, as they come."""
    pending, busy, idle = iter(tasks), dict[Worker, T](), list(pool)
    while True:
        while idle and (task := next(pending, None)) is not None:
            busy[idle[-1]] = task
            idle.pop().send(task)
        if not busy:
            return
        for each in ready(busy):
            task, reply = busy.pop(each), each.receive()
            if isinstance(reply, WorkerDied):
                raise UserError(f"a process that reads DICOM headers in {task.place} died (exit status {reply.status})")
            idle.append(each)
            yield task, reply
