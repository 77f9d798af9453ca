"""A run's numbers for TensorBoard: event files below `<run>/tensorboard`, the same as wandb is given.

A thread follows `metrics.jsonl` from its first line on. So what a killed run had not written is written by its
continuation, and what that drops is gone here too.
"""

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from scanfoundry.pretrain.logging.wandb_process import without_paths

FOLDER = "tensorboard"
POLL_S = 0.5  # between looks at metrics.jsonl
FLUSH_S = 10  # until what was logged is in the file
END_S = 60.0  # that a run waits at its end for what is left


class TensorBoardFiles:
    """Event files of one start of a run, which replace those of the starts before.

    Args:
        metrics: the file of the run's numbers.
        settings: its configuration, of which paths are left out.
        log: takes one line for people.
    """

    def __init__(self, run_dir: Path, metrics: Path, settings: dict[str, Any], log: Callable[[str], None]) -> None:
        self._run_dir, self._metrics, self._settings, self._log = run_dir, metrics, without_paths(settings), log
        self._ended = threading.Event()
        self._last: dict[str, str] = {}  # texts, which are written as they change
        self._thread = threading.Thread(target=self._follow, name="tensorboard", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left."""
        self._ended.set()
        self._thread.join(END_S)
        if self._thread.is_alive():
            self._log(f"TensorBoard's files are not complete after {END_S:g} s; metrics.jsonl has everything")

    def _follow(self) -> None:
        try:
            self._write_all()
        except OSError as error:
            self._log(f"TensorBoard's files cannot be written ({error.strerror}); metrics.jsonl has everything")

    def _write_all(self) -> None:
        from torch.utils.tensorboard import SummaryWriter  # seconds, which the run does not wait for

        folder = self._run_dir / FOLDER
        for earlier in folder.glob("events.out.tfevents.*"):
            earlier.unlink()
        with SummaryWriter(str(folder), flush_secs=FLUSH_S) as writer, open(self._metrics, "rb") as lines:
            writer.add_text("config", f"```yaml\n{yaml.safe_dump(self._settings, sort_keys=False)}```", 0)
            last = False
            while not last:
                last = self._ended.wait(POLL_S)
                while (line := lines.readline()).endswith(b"\n"):
                    self._write(writer, json.loads(line))
                lines.seek(-len(line), 1)  # a line that is being written

    def _write(self, writer: Any, record: dict[str, Any]) -> None:
        """One line of metrics.jsonl: numbers, texts that changed, and the picture."""
        step = record["step"]
        if picture := record.pop("picture", None):
            self._write_picture(writer, self._run_dir / picture, step)
        for name, value in record.items():
            if isinstance(value, str):
                if self._last.get(name) != value:
                    writer.add_text(name, value, step)
                self._last[name] = value
            elif value is not None and name != "step":
                writer.add_scalar(name, float(value), step)

    def _write_picture(self, writer: Any, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as picture:
            writer.add_image("reconstruction", np.asarray(picture.convert("L")), step, dataformats="HW")
