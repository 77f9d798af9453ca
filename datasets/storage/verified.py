"""Which state of a file was verified, so that it is not hashed again while nothing can have happened to it.

Kept in a record file as JSON, per boot of each machine that shares the disk: inode, size, times of modification and
change. The last cannot be set by hand: whoever writes to the file in any way gives it another.
"""

import json
import os
import time
from pathlib import Path
from typing import IO

_BOOTS = 8  # of the machines that share the disk, whose verification is remembered
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def touch(record: Path) -> None:
    """Marks the record as used now."""
    now = time.time_ns()  # the kernel's own idea of now is some milliseconds coarse
    os.utime(record, ns=(now, now))


def is_verified(record: bytes, data: IO[bytes]) -> bool:
    """Whether the open file is in the state that was verified since this machine's last boot."""
    return _stamps(record).get(_boot()) == _state(data)


def set_verified(record: IO[bytes], data: IO[bytes]) -> None:
    """Notes that the open file was verified as it is now."""
    record.seek(0)
    stamps = _stamps(record.read())
    stamps.pop(_boot(), None)
    stamps[_boot()] = _state(data)
    record.seek(0)
    record.truncate()
    record.write(json.dumps(dict(list(stamps.items())[-_BOOTS:])).encode())


def _state(data: IO[bytes]) -> list[int]:
    status = os.fstat(data.fileno())
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _boot() -> str:
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else "one"


def _stamps(content: bytes) -> dict[str, list[int]]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):  # being written, or a power cut
        return {}
    return found if isinstance(found, dict) else {}
