"""Locks between the processes of a machine or of a shared disk, by flock, which the kernel releases for the dead."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import IO

from scanfoundry.configs.errors import UserError

_POLL = 0.02, 0.25  # seconds, from the first wait to the longest
_held: set[int] = set()  # descriptors of exclusive locks of this process


class Stopped(Exception):
    """The caller does not want the result any more."""


def _let_go() -> None:
    # A fork shares its parent's locks: a child that lives on would hold those of a dead parent.
    for descriptor in list(_held):
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


class NoFlock(UserError):
    """The file system has no locks."""


def no_flock(folder: Path, error: OSError) -> NoFlock:
    """The error for a folder of a file system without locks: who mounts it can mend that, or another disk is taken."""
    return NoFlock(
        f"{folder} lies on a file system without flock ({error.strerror}): mount Lustre with '-o flock' and NFS "
        "without 'nolock', or take another disk (run_dir; cache.folder for shards; SCANFOUNDRY_MODELS for models)"
    )


def lock(stream: IO[bytes], shared: bool = False, block: bool = False) -> bool:
    """Take the lock of an open file. Closing the file releases it.

    Args:
        stream: the file.
        shared: others may hold it too, if they share it.
        block: wait for it.

    Returns:
        False where another process has it.

    Raises:
        NoFlock: the file system has none.
    """
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if block else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        raise no_flock(Path(stream.name).parent, error) from error
    return True


def lies_at(stream: IO[bytes], path: Path) -> bool:
    """Whether the open file is still the one at `path`, and not a deleted or a replaced one."""
    try:
        return os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def pause(seconds: float, stop: Event | None) -> None:
    """Sleeps; Stopped as soon as `stop` is set."""
    if stop is None:
        time.sleep(seconds)
    elif stop.wait(seconds):
        raise Stopped


class NoLock(UserError):
    """What has a lock file's name is something else."""


def open_lock(path: Path) -> IO[bytes]:
    """A lock file, made where it is missing, open for reading and writing, and as it was.

    Raises:
        NoLock: a link or anything but a plain file has its name: what that leads to is not ours to write into.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # a pipe would be waited for
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR):
            raise _no_lock(path) from error
        raise
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise _no_lock(path)
    return open(path, "r+b", buffering=0, opener=lambda *_: descriptor)  # its name is told in messages


def _no_lock(path: Path) -> NoLock:
    return NoLock(
        f"{path} is a link or no plain file, and no lock of scanfoundry's: remove it, or choose another folder"
    )


@contextmanager
def exclusive(
    path: Path, patience: float, stop: Event | None = None, sign_of_life: Callable[[], Hashable] = lambda: None
) -> Iterator[IO[bytes]]:
    """The lock file `path`, made where it is missing, open for reading and writing and locked.

    Raises:
        UserError: its holder keeps it for `patience` seconds in which `sign_of_life` does not change.
    """
    wait, seen, since = _POLL[0], sign_of_life(), time.monotonic()
    while True:
        with open_lock(path) as stream:
            while lies_at(stream, path):
                if lock(stream):
                    if not lies_at(stream, path):
                        break
                    _held.add(stream.fileno())
                    try:
                        yield stream
                    finally:
                        _held.discard(stream.fileno())
                    return
                pause(wait, stop)
                wait = min(2 * wait, _POLL[1])
                if (now := sign_of_life()) != seen:
                    seen, since = now, time.monotonic()
                if time.monotonic() - since > patience:
                    raise UserError(f"another process has held {path} for {patience:.0f} s and does nothing: end it")
