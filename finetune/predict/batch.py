"""One scan after the other: whatever is wrong with one is a line of the table, and the others go on."""

import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined
from scanfoundry.datasets.readers import ReadError, Scan, scans_of
from scanfoundry.finetune.cases.channels import read_channels
from scanfoundry.finetune.predict.inputs import InputCase
from scanfoundry.finetune.predict.progress import BatchProgress, Stamp
from scanfoundry.finetune.predict.suitability import why_unlike
from scanfoundry.finetune.predict.tables import REASON, Table, TableRow
from scanfoundry.finetune.predict.writing import Writer
from scanfoundry.finetune.task import Adapter, TaskModel

FORCED = "forced"  # a column of what was predicted against the evidence


@dataclass(frozen=True)
class Force:
    """Whether scans that are unlike those of the training are predicted all the same."""

    all: bool = False


@dataclass
class PredictionBatch:
    """The scans of one command. predicted: how many of them were, at the end. over: inputs that are dealt with."""

    adapter: Adapter[Any, Any]
    members: Sequence[TaskModel]
    device: torch.device
    writer: Writer
    progress: BatchProgress
    table: Table
    tell: Callable[[str], None]
    force: Force
    predicted: int = 0
    over: int = 0

    def run(self, items: Sequence[InputCase], refused: Sequence[Quarantined]) -> list[str]:
        """Predict what is not done yet; gives a line for each input that failed. The table is then complete, in the
        order of the inputs, whatever was interrupted."""
        lines = [{"file": each.path, REASON: each.reason} for each in refused]
        stamps = {item.name: _stamp(item) for item in items}
        done = self.progress.verified(stamps)
        rows: dict[str, list[TableRow]] = {name: each.rows for name, each in done.items()}
        self.over = len(done)
        if done:
            self.tell(f"going on: {len(done)} of {len(items)} inputs are predicted already")
        self.table.write([*lines, *(row for item in items for row in rows.get(item.name, []))])
        for each in refused:
            self.tell(f"not predicted: {each.path}: {each.reason}")
        # What an earlier start died of comes last, so that it costs the others nothing.
        for item in sorted(items, key=lambda item: self.progress.begun.get(item.name, 0)):
            if item.name not in done:
                rows[item.name] = self._one(item, stamps[item.name])
                self.over += 1
        if self.table.rows != (ordered := [*lines, *(row for item in items for row in rows[item.name])]):
            self.table.write(ordered)
        kept = {self.writer.out / file for each in done.values() for file in each.files}
        self.writer.written[:] = sorted(kept.union(self.writer.written))
        self.predicted = sum(REASON not in row for row in ordered)
        return [f"{row['file']}: {row[REASON]}" for row in ordered if REASON in row]

    def _one(self, item: InputCase, stamp: Stamp) -> list[TableRow]:
        """The rows of one input, each in the table as soon as it is there; the last tells why the rest is missing."""
        self.progress.begin(item.name)
        self.writer.intend = lambda target: self.progress.intend(item.name, target)
        rows: list[TableRow] = []
        before = len(self.writer.written)
        try:
            for scans in _cases(item):
                rows.append(self._predicted(item, scans))
                self.table.add(rows[-1])
            if not rows:
                raise ReadError("holds no scan")
        except Exception as error:
            reason = _reason(error, item)
            if reason is None:
                raise
            rows.append({"file": item.shown, REASON: reason})
            self.table.add(rows[-1])
            self.tell(f"not predicted: {item.shown}: {reason}")
            return rows
        self.progress.finish(item.name, stamp, rows, self.writer.written[before:])
        return rows

    def _predicted(self, item: InputCase, scans: Sequence[Scan | None]) -> TableRow:
        scan = next(each for each in scans if each is not None)  # on whose grid the output lies
        shown = item.shown if not scan.part else f"{item.shown}#{scan.part}"
        unlike = why_unlike(scans, self.adapter.spec)
        if unlike and not self.force.all:
            raise UserError(f"{unlike}; --force predicts it all the same")
        sample = self.adapter.unlabelled(scans)
        row = {"file": shown} | self.writer.write(self.members, sample, item, scan, self.device)
        if unlike:
            self.tell(f"{shown}: predicted by --force: {unlike}")
            row[FORCED] = unlike
        return row


def _cases(item: InputCase) -> Iterator[Sequence[Scan | None]]:
    """What is predicted at once: each scan of a file or series, or the channels of a case."""
    if item.channels:
        yield read_channels(item.channels)
    else:
        yield from ([scan] for scan in scans_of(item.source))


def _reason(error: Exception, item: InputCase) -> str | None:
    """Why this input failed; None where the fault is not its own (a full disk, a broken GPU) and the batch must end.

    Of what nobody foresaw, the text may be the header's and name a patient: it is left out.
    """
    if isinstance(error, ReadError | UserError):
        return str(error)
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "does not fit into memory"
    if isinstance(error, OSError):
        own = {str(path) for source in item.sources for path in source.paths}
        return f"cannot be read: {error.strerror}" if str(error.filename) in own else None
    if isinstance(error, RuntimeError) and "CUDA" in str(error):
        return None
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} in {Path(place.filename).name}, line {place.lineno}"


def _stamp(item: InputCase) -> Stamp:
    return sum(source.size for source in item.sources), max(source.modified for source in item.sources)
