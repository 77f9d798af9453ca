"""Worker processes that cannot hang their parent: used by the crop loader and by the build.

They are started by `subprocess` rather than `multiprocessing`, so that they import neither the parent's main module
(a training script imports torch) nor need its `if __name__ == "__main__"`. Each has one duplex pipe; a dead worker is
its end of file, a dead parent is the worker's.
"""

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any

from scanfoundry.configs.errors import UserError

# A terminal's or a scheduler's signal is for the parent to answer; the workers end with their pipe.
_PARENTS_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP}
_GRACE = 5.0  # seconds for a worker to end by itself

Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much
Handler = Callable[[Any], Iterable[Any]]


@dataclass(frozen=True)
class WorkerDied:
    """Received in place of a reply: the worker is gone, with this exit status."""

    status: int


@dataclass(frozen=True)
class _Failure:
    text: str
    mistake: bool  # the user's


class Worker:
    """A worker process that answers tasks.

    Args:
        factory: 'module:function'. The function is called with the connection, and what it returns answers the tasks.
    """

    def __init__(self, factory: str) -> None:
        module, function = factory.split(":")
        self.connection, remote = Pipe(duplex=True)
        command = (
            f"from {module} import {function} as factory; "
            f"from scanfoundry.datasets.processes import serve; serve(factory, {remote.fileno()})"
        )
        one_thread = {"PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1", "BLOSC_NTHREADS": "1"}
        # Blocked here, the signals stay blocked in the child from its first instruction on.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PARENTS_SIGNALS)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command],
                stdin=subprocess.DEVNULL,
                pass_fds=[remote.fileno()],
                env={**os.environ, **one_thread},
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            remote.close()

    def send(self, message: Any) -> None:
        """Send a task. The next `receive` shows whether the worker is dead."""
        with suppress(BrokenPipeError, ConnectionResetError):
            self.connection.send(message)

    def receive(self) -> Any:
        """The next reply.

        Returns:
            The reply, or `WorkerDied`.

        Raises:
            UserError: the handler raised one.
            RuntimeError: the handler raised anything else; the text is its traceback.
        """
        try:
            reply = self.connection.recv()
        except (EOFError, OSError):
            return WorkerDied(self._end())
        if isinstance(reply, _Failure):
            raise UserError(reply.text) if reply.mistake else RuntimeError(f"in a worker process:\n{reply.text}")
        return reply

    def _end(self) -> int:
        try:
            return self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
        try:
            return self.process.wait(_GRACE)
        except subprocess.TimeoutExpired:  # it waits for a dead disk, which not even SIGKILL ends
            return -signal.SIGKILL

    def close(self) -> None:
        """End the worker, by force where it does not end by itself."""
        self.connection.close()
        self._end()


def ready(workers: Iterable[Worker], timeout: float | None = None) -> list[Worker]:
    """The workers that have replied or died.

    Args:
        workers: whom to wait for.
        timeout: seconds to wait for the first of them; None: without end.

    Returns:
        An empty list where nothing happens within the timeout.
    """
    by_connection = {id(worker.connection): worker for worker in workers}
    connections = [worker.connection for worker in by_connection.values()]
    return [by_connection[id(connection)] for connection in wait(connections, timeout)]


def serve(factory: Callable[[Connection], Handler], descriptor: int) -> None:
    """Run a worker: answer tasks until the parent closes the pipe or dies."""
    connection = Connection(descriptor)
    try:
        for message in _answers(factory, connection):
            connection.send(message)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    # Nothing to clean up, and interpreter shutdown takes a while with large memory maps.
    os._exit(0)


def _answers(factory: Callable[[Connection], Handler], connection: Connection) -> Iterator[Any]:
    try:
        handle = factory(connection)
        while True:
            yield from handle(connection.recv())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise
    except UserError as error:
        yield _Failure(str(error), mistake=True)
    except OSError as error:  # disk full, no permission: the user's to mend, and one line says it
        yield _Failure(f"{error.strerror or error}: {error.filename or 'in a worker process'}", mistake=True)
    except Exception:
        yield _Failure(traceback.format_exc(), mistake=False)
