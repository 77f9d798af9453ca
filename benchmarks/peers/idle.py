"""Wait until a process and its children have nothing left to do, so that they do not slow the next one's round."""

import os
import time
from pathlib import Path

PROC = Path("/proc")
PAUSE = 0.1  # seconds
QUIET = 0.1  # share of one core that is idle: some loaders poll


def family(pid: int) -> list[int]:
    """The process and all its descendants."""
    pids = [pid]
    for each in pids:
        for task in (PROC / str(each) / "task").glob("*/children"):
            pids.extend(int(child) for child in _read(task).split())
    return pids


def cpu_seconds(pid: int) -> float:
    """CPU time that a process and its descendants have used."""
    ticks = 0
    for each in family(pid):
        fields = _read(PROC / str(each) / "stat").rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:13])
    return ticks / os.sysconf("SC_CLK_TCK")


def wait_idle(pid: int, limit: float = 30.0) -> bool:
    """True when the family of `pid` was quiet twice in a row, False after `limit` seconds."""
    end, quiet, before = time.monotonic() + limit, 0, cpu_seconds(pid)
    while time.monotonic() < end:
        time.sleep(PAUSE)
        now = cpu_seconds(pid)
        quiet = quiet + 1 if now - before < QUIET * PAUSE + 1e-9 else 0
        before = now
        if quiet == 2:
            return True
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:  # it ended meanwhile
        return ""
