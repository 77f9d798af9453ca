"""The process beside a run that talks to wandb: started, watched and ended without ever waiting for long."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from scanfoundry.configs.files import write_text
from scanfoundry.datasets.storage.address import is_url, shown

MARGIN_S = 15.0  # to import wandb, and for its own time limits to end, before it counts as stuck
OFFLINE_S = 10.0  # to write an offline run down at the end; it is killed then


class WandbProcess:
    """One process, `python -m scanfoundry.pretrain.logging.tracker`; a second one, offline, where it is not online.

    Nothing here raises for what wandb does.

    Args:
        job: what `tracker.follow` needs.
        log: takes one line for the user.
    """

    def __init__(self, job: dict[str, Any], run_dir: Path, log: Callable[[str], None]) -> None:
        self._log, self._run_dir = log, run_dir
        self._job = {**job, "settings": without_paths(job["settings"]), "id": _identity(run_dir / "wandb_id.txt")}
        self._process: subprocess.Popen[bytes] | None = None
        self._life = -1
        self._start(job["mode"])

    def _start(self, mode: str) -> None:
        self._ready, self._finished, self._heard, self._failure = False, False, b"", ""
        self._job["mode"] = mode
        self._deadline = time.monotonic() + self._job["start_s"] + MARGIN_S
        life, self._life = os.pipe()
        try:
            with tempfile.TemporaryFile() as job:  # a pipe could be full
                job.write(json.dumps(self._job).encode())
                job.seek(0)
                self._process = subprocess.Popen(
                    [sys.executable, "-m", "scanfoundry.pretrain.logging.tracker", str(life)],
                    stdin=job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, pass_fds=(life,),
                    start_new_session=True,
                )  # fmt: skip
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            os.close(self._life)
            self._log(f"wandb cannot be started ({error.strerror}); the run goes on without it")
        finally:
            os.close(life)

    def look(self) -> None:
        """Hear what there is to hear, and replace a process that cannot get online; never waits."""
        if self._process is None:
            return
        ended = self._process.poll() is not None  # before reading: its last answer is then there
        self._listen()
        if not ended and (self._ready or time.monotonic() < self._deadline):
            return
        reason = self._failure or ("it has ended" if ended else f"no connection in {self._job['start_s']:g} s")
        self._kill()
        if self._job["mode"] == "online":
            self._log(f"wandb is not online ({reason}); {self._offline()}")
        else:
            self._log(f"wandb has failed ({reason}); the run goes on without it, metrics.jsonl has everything")

    def _offline(self) -> str:
        """Start one that writes the run so far, and what is to come, to disk; what the user can do with that."""
        self._start("offline")
        return f"the run is written offline, `wandb sync {self._run_dir}/wandb/offline-*` sends it"

    def _listen(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        self._heard += self._process.stdout.read() or b""
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            answer = json.loads(line)
            self._ready = self._ready or "ready" in answer
            self._finished = self._finished or "finished" in answer
            self._failure = answer.get("failed", self._failure)

    def close(self) -> None:
        """Let it send what is left, for `finish_s` seconds at most; offline, where it never got online."""
        self.look()
        if self._process is None:
            return
        if self._job["mode"] == "online":
            if self._end(self._job["finish_s"]):
                return
            self._log(f"wandb has not sent everything ({self._failure or 'no answer'}); {self._offline()}")
        if self._process is not None:
            seconds = OFFLINE_S + (0.0 if self._ready else MARGIN_S)
            if not self._end(seconds):
                self._log(f"wandb has not written everything in {seconds:g} s; metrics.jsonl has it")

    def _end(self, seconds: float) -> bool:
        """Ask it to end, and see to it within that time; whether it ended by itself, all being written.

        What it says is not enough: wandb's own process flushes its file after that, and is not to be killed before.
        """
        assert self._process is not None
        with contextlib.suppress(BrokenPipeError, subprocess.TimeoutExpired):
            os.write(self._life, b".")
            self._process.wait(seconds)
        ended = self._process.poll() is not None
        self._listen()
        self._kill()
        return ended and self._finished

    def _kill(self) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(MARGIN_S)
        if self._process.stdout is not None:
            self._process.stdout.close()
        os.close(self._life)
        self._process = None


def without_secrets(text: str) -> str:
    """One line of an error message, without wandb's key and without users, passwords and queries of addresses."""
    line = " ".join(text.split())[:300]
    key = os.environ.get("WANDB_API_KEY", "")
    if key:
        line = line.replace(key, "***")
    return re.sub(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\")]+", lambda found: shown(found[0]), line)


def without_paths(value: Any) -> Any:
    """Settings as they may leave the site: of a path its last part, of an address no user, password or signature."""
    if isinstance(value, dict):
        return {key: without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_paths(item) for item in value]
    if not isinstance(value, str):
        return value
    if is_url(value) and not value.lower().startswith("file:"):
        return shown(value)
    return re.split(r"[/\\]", value.rstrip("/\\"))[-1]


def _identity(path: Path) -> str:
    """The wandb run's id: the same for all of a run's continuations."""
    if path.exists() and (known := path.read_text().strip()):
        return known
    identity = secrets.token_hex(4)
    write_text(path, identity)
    return identity
