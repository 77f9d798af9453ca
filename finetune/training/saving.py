"""What a trial has on the disk while it runs: the newest snapshot of each part, whole or not there, with a checksum.

cells/<trial>/progress/<part>-<count>-<crc32>.safetensors    parts: training-0, member-0, held-0, ..., testing
"""

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import Any, NoReturn

from isal import isal_zlib
from safetensors import SafetensorError, safe_open
from torch import Tensor

from scanfoundry.backbones.models.tensor_file import Written, write_tensors
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import replace_whole, sync_folder
from scanfoundry.finetune.training.interrupts import Stop, Stopped

SHARE = 0.01  # of the time that may go into writing, however large a snapshot is
PROGRESS = "progress"  # the folder in a cell's
SUFFIX = ".safetensors"


@dataclass
class Snapshot:
    """Tensors by name, and what JSON can hold."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class SnapshotFolder:
    """The snapshots of one trial.

    digest: of all that its numbers depend on; snapshots of another digest are removed.
    minutes: between two snapshots of a part that runs; 0: at every chance. Larger ones are written less often, so that
    writing takes no more than `SHARE` of the time.
    """

    def __init__(self, folder: Path, digest: str, minutes: float, stop: Stop, log: Callable[[str], None]) -> None:
        self._folder, self._digest, self._minutes, self._stop, self._log = folder, digest, minutes, stop, log
        self._count, self._cost = 0, 0.0
        self._opened = self._last = time.monotonic()
        self.spent_before = 0.0  # seconds that earlier starts of this trial took, as far as they were saved
        self._stop.at_once = self._text("nothing of it is saved yet, it will be repeated")
        self._tidy()

    @property
    def spent(self) -> float:
        """Seconds of this trial over all its starts."""
        return self.spent_before + time.monotonic() - self._opened

    @property
    def due(self) -> bool:
        """Whether it is time for the next snapshot of what runs."""
        wait = max(60 * self._minutes, self._cost / SHARE) if self._minutes else 0.0
        return time.monotonic() >= self._last + wait

    def soon(self) -> AbstractContextManager[None]:
        """Within it `chance` is called again and again, and a signal waits for the next one."""
        return self._stop.soon()

    def chance(self, part: str, what: str, take: Callable[[], Snapshot]) -> None:
        """Work can go on from here: it is saved where that is due, and left where somebody asked for it.

        what: how far it is, for people ('step 312'). Stopped after a signal; UserError where nothing can be written.
        """
        if self._stop.asked is not None or self.due:
            started = time.monotonic()
            self.write(part, take(), what)
            self._cost = self._last - started
        self.leave_if_asked(what)

    def leave_if_asked(self, what: str) -> None:
        """Stopped after a signal, where all of `what` is saved."""
        if self._stop.asked is not None:
            raise Stopped(self._stop.asked, self._text(f"saved at {what}; the same command goes on from there"))

    def goes_on(self, what: str) -> None:
        """Log from where the trial goes on."""
        self._log(f"{self._trial}: going on from {what}")
        self._stop.at_once = self._text(f"what came after {what} will be repeated by the same command")

    def read(self, part: str) -> Snapshot | None:
        """The newest whole snapshot of a part; damaged ones are named and removed."""
        for path in reversed(self._files(part)):
            try:
                if _crc32(path) != int(path.stem.rsplit("-", 1)[1], 16):
                    raise ValueError("its checksum is wrong")
                with safe_open(path, framework="pt") as file:
                    facts = json.loads(file.metadata()["facts"])
                    return Snapshot({name: file.get_tensor(name) for name in file.keys()}, facts)  # noqa: SIM118
            except (OSError, ValueError, KeyError, SafetensorError):
                self._log(f"{path} is damaged: {part} of {self._trial} starts over")
                path.unlink(missing_ok=True)
        return None

    def write(self, part: str, snapshot: Snapshot, what: str) -> None:
        """Put a snapshot in the place of the one before; UserError, which is still there then, where that fails."""
        facts = json.dumps(snapshot.facts | {"spent": self.spent})
        self._count += 1
        written: list[Written] = []

        def fill(path: Path) -> Path:
            written.append(write_tensors(path, snapshot.tensors, {"mark": self._digest, "facts": facts}))
            return self._folder / f"{part}-{self._count:06d}-{written[0].crc32:08x}{SUFFIX}"

        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            before = self._files(part)
            final = replace_whole(self._folder / part, fill)
            sync_folder(self._folder)
            for path in before:
                if path != final:
                    path.unlink(missing_ok=True)
        except OSError as error:
            self._refuse(error)
        self._last = time.monotonic()
        self._stop.at_once = self._text(f"what came after {what} will be repeated by the same command")

    def forget(self, part: str) -> None:
        """Remove what is there of a part."""
        for path in self._files(part):
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove everything: the trial is finished, or starts over."""
        rmtree(self._folder, ignore_errors=True)

    def _tidy(self) -> None:
        """Remove what a killed writer left, and snapshots of something else; learn what earlier starts took."""
        foreign = False
        for path in self._folder.glob(".*.part"):
            path.unlink(missing_ok=True)
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            try:
                with safe_open(path, framework="pt") as file:
                    metadata = file.metadata()
                if metadata["mark"] != self._digest:
                    foreign |= _crc32(path) == int(path.stem.rsplit("-", 1)[1], 16)  # else damaged: `read` will log it
                    continue
                self.spent_before = max(self.spent_before, json.loads(metadata["facts"])["spent"])
                self._count = max(self._count, int(path.stem.split("-")[-2]))
            except (OSError, ValueError, KeyError, TypeError, IndexError, SafetensorError):
                continue  # `read` will log it
        if foreign:
            self._log(f"{self._trial}: configuration, data or code changed since it was stopped; it starts over")
            self.clear()
            self.spent_before = 0.0

    @property
    def _trial(self) -> str:
        return self._folder.parent.name

    def _text(self, what: str) -> str:
        return f"stopped in {self._trial}: {what}; finished trials are kept"

    def _files(self, part: str) -> list[Path]:
        return sorted(self._folder.glob(f"{part}-*-*{SUFFIX}"))

    def _refuse(self, error: OSError) -> NoReturn:
        raise UserError(
            f"cannot save {self._trial} in {self._folder}: {error.strerror or error}; what was saved before is still "
            "there: once that is mended, the same command goes on from it"
        ) from error


def _crc32(path: Path) -> int:
    value = 0
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 22):
            value = isal_zlib.crc32(chunk, value)
    return value
