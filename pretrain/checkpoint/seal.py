"""The folder of a checkpoint: written under another name, sealed, renamed.

`complete.json`, the seal, is written last. It holds the step, the position in the stream, and size and crc32 of every
file: a folder without it, or whose files differ from it, is no checkpoint.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.configs.files import sync_folder

SEAL = "complete.json"
FORMAT = 2  # 1 was DeepSpeed's own, bound to a world size and a stage


def final_folder(root: Path, step: int) -> Path:
    """Where the complete checkpoint of a step lies."""
    return root / f"step-{step:08d}"


def temporary_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of a step is written."""
    return root / f".tmp-step-{step:08d}"


def make_anew(folder: Path) -> None:
    """An empty folder, in place of what a killed writer left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def seal(temporary: Path, final: Path, content: dict[str, Any], everything: list[list[Written]]) -> None:
    """Write the seal and give the folder its name, durably.

    Args:
        temporary: holds all files.
        final: the name of the checkpoint.
        content: what the seal says beside the files.
        everything: the files of each rank.

    Raises:
        OSError: the disk is full or read-only.
    """
    files = {one.name: {"bytes": one.bytes, "crc32": one.crc32} for each in everything for one in each}
    with open(temporary / SEAL, "w") as handle:
        json.dump({"format": FORMAT, **content, "files": files}, handle, indent=1)
        handle.flush()
        os.fsync(handle.fileno())
    sync_folder(temporary)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(temporary, final)
    sync_folder(final.parent)


def folders(root: Path) -> list[Path]:
    """The checkpoints under `root`, oldest first."""
    return sorted(p for p in root.glob("step-*") if p.is_dir())


def remove_old(root: Path, keep_last: int) -> None:
    """Delete all checkpoints but the newest `keep_last`."""
    for old in folders(root)[:-keep_last]:
        shutil.rmtree(old, ignore_errors=True)
