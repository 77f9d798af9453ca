"""The lock of a run folder, and what lies in it: shared by pre-training and fine-tuning."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.locks import NoFlock, NoLock, exclusive, lock, open_lock

LOCK = ".lock"
# Files that a folder may hold before a run begins in it: a configuration, a log, what a killed writer left.
HARMLESS = {".yaml", ".yml", ".log", ".out", ".err", ".part"}


def take(run_dir: Path, stack: ExitStack, patience: float) -> str:
    """Lock the run folder for as long as `stack` is open; returns the problem in one line, or an empty string.

    The lock is the kernel's, so that a process that died holds none.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = stack.enter_context(exclusive(run_dir / LOCK, patience))
    except (NoLock, NoFlock) as error:
        return str(error)
    except UserError:
        return f"{run_dir} is in use by {_holder(run_dir)}; end that run, or choose another run_dir"
    except OSError as error:
        return f"cannot write to the run folder {run_dir}: {error.strerror}"
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
    return ""


@contextmanager
def shared(run_dir: Path) -> Iterator[None]:
    """Work in a run folder beside others that do so, on other machines too; whoever takes it alone waits for all.

    Raises:
        UserError: somebody has it alone, or it cannot be locked or written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = open_lock(run_dir / LOCK)
    except OSError as error:
        raise UserError(f"cannot write to the run folder {run_dir}: {error.strerror}") from error
    with file:
        if not lock(file, shared=True):
            raise UserError(f"{run_dir} is in use by {_holder(run_dir)}; end that run, or choose another run_dir")
        yield


def _holder(run_dir: Path) -> str:
    try:
        return (run_dir / LOCK).read_text() or "another process"
    except OSError:
        return "another process"


def names_in(folder: Path) -> set[str]:
    """Names of what lies in a run folder, none where it is not there.

    Raises:
        UserError: the folder cannot be read, or is a file.
    """
    try:
        return {path.name for path in folder.iterdir()} if folder.exists() else set()
    except NotADirectoryError as error:
        raise UserError(f"run_dir {folder} is a file; choose a folder") from error
    except OSError as error:
        raise UserError(f"cannot read the run folder {folder}: {error.strerror}") from error
