"""Waiting for a launched job, and passing on what the waiting person asks for."""

import contextlib
import logging
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import NoReturn

from scanfoundry.launch.cluster.job_folder import JobFolder, newest_step
from scanfoundry.launch.cluster.overview import is_active

logger = logging.getLogger(__name__)

LOOK_S = 0.2
ASK_S = 15.0  # between questions to the scheduler
GONE = {"kind": "lost", "reason": "it is gone without a last word; `scanfoundry launch logs` may tell why"}


def wait_for(job: JobFolder) -> int:
    """Wait for the last verdict on a job.

    Ctrl-C and TERM ask a local job to save and end; a job on SLURM goes on, and only the waiting ends.

    Returns:
        0 if the run is complete, else the exit code of its end.
    """
    facts, previous = job.record(), signal.signal(signal.SIGTERM, _raise)
    asked, ask_at = 0, time.monotonic() + ASK_S
    try:
        while True:
            try:
                gone = time.monotonic() >= ask_at and not is_active(job)
                end = next((note for note in job.notes() if note.get("action") == "end"), GONE if gone else None)
                if end is not None:
                    return _report_end(job, end["kind"], end["reason"], asked)
                if time.monotonic() >= ask_at:
                    ask_at = time.monotonic() + ASK_S
                time.sleep(LOOK_S)
            except KeyboardInterrupt as stop:
                asked = stop.args[0] if stop.args else signal.SIGINT
                if facts.cluster != "local":
                    print(f"job {facts.job_id} goes on; `scanfoundry launch cancel {facts.run_dir}` ends it")
                    raise
                with contextlib.suppress(ProcessLookupError):  # it ended in this moment; its verdict is there
                    os.kill(int(facts.job_id or 0), asked)
    finally:
        signal.signal(signal.SIGTERM, previous)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt(number)


def _report_end(job: JobFolder, kind: str, reason: str, asked: int) -> int:
    facts = job.record()
    if kind == "complete":
        what = f"step {newest_step(Path(facts.run_dir))} in {facts.run_dir}" if facts.steps else facts.run_dir
        print(f"complete: {what}")
        return 0
    logger.error("job %s ended: %s", facts.job_id, reason)
    logger.error("its log is %s", Path(facts.logs) / f"{facts.job_id}_0_log.out")
    if asked:
        return 128 + asked
    return {"final": 2, "interrupted": 130}.get(kind, 1)
