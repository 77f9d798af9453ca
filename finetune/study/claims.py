"""Claims on trials: a lock file for each, so that no two processes run the same one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.storage.locks import NoFlock, NoLock, exclusive

CLAIMS = "claims"  # the folder in a run folder


@contextmanager
def claimed(run_dir: Path, trial: str) -> Iterator[bool]:
    """Whether this process has the trial, for as long as the context lasts.

    The lock is the kernel's: a process that is killed has no claim any more.
    """
    folder = run_dir / CLAIMS
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(folder / f"{trial}.lock", 0.0))
        except (NoLock, NoFlock):
            raise
        except UserError:  # another process has it
            yield False
            return
        yield True
