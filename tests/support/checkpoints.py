"""Checkpoints written at once, as a test needs them; a run writes them beside its steps."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from scanfoundry.backbones.models.tensor_file import Written
from scanfoundry.pretrain.checkpoint.background import CheckpointWriter
from scanfoundry.pretrain.checkpoint.seal import final_folder
from scanfoundry.pretrain.distributed.world import ALONE


def save(root: Path, step: int, stream: dict[str, Any], write: Callable[[Path], list[Written]], keep_last: int) -> Path:
    """Let `write` fill a folder, seal it, keep the newest `keep_last`; gives the folder of the checkpoint."""
    with CheckpointWriter(root, keep_last, ALONE, print) as writer:
        writer.begin(step, stream, write)
        writer.wait()
    return final_folder(root, step)
