"""Files that are either whole or not there: a reader, or whoever comes after a kill, sees the old or the new."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside `path`, then rename it into place."""

    def fill(part: Path) -> Path:
        write(part)
        return path

    replace_whole(path, fill)


def replace_whole(path: Path, write: Callable[[Path], Path]) -> Path:
    """Let `write` fill a file beside `path`, then rename it to what `write` returned; gives that."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        final = write(part)
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)
    return final


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk: a rename then outlives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text`."""
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON that any reader takes: nan is refused (ValueError), so an undefined number must be None."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")
