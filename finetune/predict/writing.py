"""One scan's prediction, written in the form that fits its task and its source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.sources import shown
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.predict.inputs import InputCase
from scanfoundry.finetune.predict.outputs import Origin, OutputFormat, output_formats
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.task import Adapter, TaskModel
from scanfoundry.finetune.task_parts import TableRow


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    format: str
    probabilities: bool
    uncertainty: bool


@dataclass
class Writer:
    """Predicts and writes one scan after the other. `written`: every file so far, not the table."""

    adapter: Adapter[Any, Any]
    options: Options
    out: Path
    serial: str
    tell: Callable[[str], None]
    written: list[Path] = field(default_factory=list)
    intend: Callable[[Path], None] = lambda target: None  # hears of a file before it is written

    def write(
        self, members: Sequence[TaskModel], sample: Sample[Any], item: InputCase, scan: Scan, device: torch.device
    ) -> TableRow:
        """Predict one scan and write its files; gives its part of the table."""
        self.out.mkdir(parents=True, exist_ok=True)
        files = ScanFiles(self, Origin(scan, item, self.adapter.spec, self.serial))
        return self.adapter.write(members, sample, device, files)

    def put(self, origin: Origin, ending: str, write: Callable[[Path], None]) -> Path:
        """Let `write` make a file of this scan; UserError where something lies there."""
        part = f"_{origin.scan.part}" if origin.scan.part else ""
        target = self.out / f"{origin.item.name}{part}{ending}"
        if target.exists():
            raise UserError(f"{target} is there already and is not written over")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.intend(target)
        write(target)
        self.written.append(target)
        return target


@dataclass(frozen=True)
class ScanFiles:
    """The files of one scan, as `OutputFiles` says."""

    writer: Writer
    origin: Origin

    @property
    def scan(self) -> Scan:
        """What is predicted on; of several channels the first."""
        return self.origin.scan

    @property
    def probabilities(self) -> bool:
        """Whether they are asked for."""
        return self.writer.options.probabilities

    @property
    def uncertainty(self) -> bool:
        """Whether it is asked for."""
        return self.writer.options.uncertainty

    def takes(self, kind: str, made: Any) -> bool:
        """Whether a format of the kind is asked for, or suits what is written and its scan."""
        formats = [each for each in output_formats() if each.kind == kind]
        asked = any(each.name == self.writer.options.format for each in formats)
        return asked or any(each.suits(made, self.origin) for each in formats)

    def put(self, kind: str, made: Any, name: str = "") -> str | None:
        """Write one file in the format that was asked for, or in the first one that suits and can hold it."""
        formats = [each for each in output_formats() if each.kind == kind]
        ending = f"_{name}" if name else ""
        for each in formats:
            if each.name == self.writer.options.format:
                if reason := each.needs(self.origin):
                    raise UserError(reason)
                return self._write(each, made, ending)
        suiting = [each for each in formats if each.suits(made, self.origin)]
        for number, each in enumerate(suiting):
            try:
                return self._write(each, made, ending)
            except UserError as error:
                others = suiting[number + 1 :]
                instead = f"{others[0].title} and no {each.title}" if others else f"{kind} as JSON alone"
                self.writer.tell(f"{self.origin.item.shown}: {instead}: {error}")
        return None

    def _write(self, form: OutputFormat, made: Any, ending: str) -> str:
        put = self.writer.put(self.origin, ending + form.suffix, lambda target: form.save(target, made, self.origin))
        return shown(put.relative_to(self.writer.out).as_posix())
