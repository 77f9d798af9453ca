"""A loader's process as the benchmark sees it: started, told to run rounds, ended."""

import contextlib
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

from peers.idle import wait_idle

BENCHMARKS = Path(__file__).resolve().parents[1]


class Contender:
    """A process that speaks `protocol`: started by `command`, which is all that the constructor needs.

    A failure on its side is a RuntimeError here. Use it as a context manager, or call `close`.
    """

    def __init__(self, command: list[str], log: Path | None = None) -> None:
        self._log = open(log, "w") if log else None  # noqa: SIM115
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log or subprocess.DEVNULL,
            text=True, bufsize=1, env=environment(), start_new_session=True,
        )  # fmt: skip
        self._answer()

    def round(self, seconds: float) -> float:
        """Crops per second of one round, begun and ended with the process idle."""
        wait_idle(self._process.pid)
        self._process.stdin.write(f"round {seconds}\n")
        answer = self._answer()
        wait_idle(self._process.pid)
        return answer["crops"] / answer["seconds"]

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"ended with {self._process.wait()}"}
        if "error" in answer:
            self.close()
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """Ask it to end; kill it after some seconds."""
        self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(10)
        with contextlib.suppress(ProcessLookupError):  # workers outlive some loaders
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._log:
            self._log.close()

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def environment() -> dict[str, str]:
    """One thread per process: workers fill the cores."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLOSC_NTHREADS", "NUMEXPR_NUM_THREADS"), "1")
    return {**os.environ, **threads, "PYTHONPATH": str(BENCHMARKS), "PYTHONWARNINGS": "ignore"}
