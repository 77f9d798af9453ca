"""Temporary folders in which headers of patients may lie, and which do not stay, even after a kill.

Each has a lock beside it that the system releases when its process ends, however it ends. The next process that works
below the same place removes the folders whose locks are free: a build in its partial folder, a study in its run folder,
a prediction in its output folder. Anything else uses a folder of the user's in the system's temporary one.
"""

import fcntl
import inspect
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_NAME, _LOCK, _CLEARED = ".scratch-", ".lock", ".cleared-"


class _ScratchRoot:
    """Where this process makes its folders. None: in the system's temporary folder."""

    folder: Path | None = None


@contextmanager
def kept_below(folder: Path) -> Iterator[None]:
    """Until the context ends, make the temporary folders of this process below `folder`.

    Folders that killed processes left there are removed first. `folder` itself is made where one is needed, and
    removed at the end if nothing else came into it.
    """
    before, fresh = _ScratchRoot.folder, not folder.exists()
    clear(folder)
    _ScratchRoot.folder = folder
    try:
        yield
    finally:
        _ScratchRoot.folder = before
        if fresh:
            with suppress(OSError):  # not empty, or never made
                folder.rmdir()


def scratch_below(argument: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorator: `kept_below` the path that is this argument of the function, or an attribute of it: 'out', 'a.b'."""
    name, *attributes = argument.split(".")

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @wraps(function)
        def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
            found = signature.bind(*args, **kwargs).arguments[name]
            for attribute in attributes:
                found = getattr(found, attribute)
            with kept_below(Path(found)):
                return function(*args, **kwargs)

        return wrapped

    return decorate


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder for this process alone. It is removed when the context ends, or by the next start after a kill."""
    root = _ScratchRoot.folder if _ScratchRoot.folder is not None else _of_the_system()
    root.mkdir(parents=True, exist_ok=True)
    lock, folder = _locked(root)
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        _remove(folder)
        folder.with_name(folder.name + _LOCK).unlink(missing_ok=True)
        os.close(lock)


def clear(root: Path) -> None:
    """Remove what processes that are gone have left in `root`."""
    for folder in root.glob(f"{_CLEARED}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for lock in root.glob(f"{_NAME}*{_LOCK}"):
        with suppress(OSError):  # held: its process is alive; or gone in the meantime
            descriptor = os.open(lock, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(lock.with_name(lock.name.removesuffix(_LOCK)))
                lock.unlink()
            finally:
                os.close(descriptor)


def _locked(root: Path) -> tuple[int, Path]:
    """A lock that is held, as a descriptor, and the folder that it is of, which is not there yet."""
    while True:
        folder = root / f"{_NAME}{secrets.token_hex(8)}"
        lock = folder.with_name(folder.name + _LOCK)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        with suppress(OSError):  # a disk without locks: nobody clears it either
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with suppress(OSError):  # somebody who cleared took it before it was held
            if os.fstat(descriptor).st_ino == lock.stat().st_ino:
                return descriptor, folder
        os.close(descriptor)


def _remove(folder: Path) -> None:
    """Whole, though a converter that outlived its parent may still write to it by its name."""
    cleared = folder.with_name(f"{_CLEARED}{secrets.token_hex(8)}")
    with suppress(FileNotFoundError):
        folder.rename(cleared)
        shutil.rmtree(cleared, ignore_errors=True)


def _of_the_system() -> Path:
    """The user's folder in the temporary one, cleared once by each process."""
    root = Path(tempfile.gettempdir(), f"scanfoundry-{os.getuid()}")
    root.mkdir(mode=0o700, exist_ok=True)
    if root.is_symlink() or root.stat().st_uid != os.getuid():
        raise PermissionError(1, "belongs to somebody else", str(root))
    if root not in _cleared:
        _cleared.add(root)
        clear(root)
    return root


_cleared: set[Path] = set()
