"""`predict`: a fine-tuned model on new scans; output in the geometry of the input."""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from scanforge.backbones.release import sha256
from scanforge.configs.errors import UserError
from scanforge.configs.text import printable
from scanforge.datasets.readers import ReadError, Scan, scans_of
from scanforge.datasets.readers.scratch import scratch_below
from scanforge.finetune.channels import read_channels
from scanforge.finetune.inference.inputs import Item, cases_of, find_items
from scanforge.finetune.modelfile import INFO, load_model, pick_device
from scanforge.finetune.outputs.tables import Row, write_boxes, write_csv
from scanforge.finetune.outputs.writing import FORMATS, SUFFIXES, Options, Writer
from scanforge.finetune.tasks.adapter import Adapter, TaskModel

DEVICES = ("auto", "cpu", "cuda")
TABLES = {"segmentation": "predictions.csv", "detection": "predictions.json"}

Tell = Callable[[str], None]


@scratch_below("out")
def predict(
    model: Path,
    inputs: Sequence[Path],
    out: Path,
    device: str = "auto",
    format: str = "auto",
    probabilities: bool = False,
    uncertainty: bool = False,
    tell: Tell | None = None,
) -> list[Path]:
    """Predict every scan under `inputs` (files or folders) with the model of a fine-tuning run; gives what it wrote.

    Segmentation: a label map for each scan and the volumes of all in predictions.csv. Classification: predictions.csv.
    Detection: predictions.json, and a structured report for each DICOM series. See docs/finetuning.md.
    format   'auto' (NIfTI for volumes, PNG for images, DICOM-SEG for DICOM), 'nifti', 'dicom-seg'
    tell     takes lines for people: what fell back to another format, and each scan that failed; stderr by default
    Raises UserError before any work for an unusable model, input or output folder; after all of it where a scan could
    not be predicted: the others are then written.
    """
    tell = tell or (lambda line: print(printable(line), file=sys.stderr))
    adapter, members = load_model(Path(model))
    options = _checked(adapter, device, format, probabilities, uncertainty)
    items, damaged = find_items([Path(path) for path in inputs])
    items = cases_of(items, adapter.spec.channels)
    table = Path(out) / TABLES.get(adapter.spec.task.name, "predictions.csv")
    _refuse_output([Path(path) for path in inputs], Path(out), items, table)
    place = pick_device(device)
    writer = Writer(adapter, options, Path(out), _serial(Path(model)), tell)
    rows, failed = _predict_each(adapter, [member.to(place) for member in members], items, writer, place)
    if rows:
        (write_boxes if table.suffix == ".json" else write_csv)(table, rows)
        writer.written.append(table)
    failed = [f"{line.path}: {line.reason}" for line in damaged] + failed
    for line in failed:
        tell(f"not predicted: {line}")
    if failed:
        raise UserError(f"{len(failed)} inputs could not be predicted (listed above); {len(rows)} scans are in {out}")
    return writer.written


def _predict_each(
    adapter: Adapter[Any, Any], members: Sequence[TaskModel], items: Sequence[Item], writer: Writer, place: torch.device
) -> tuple[list[Row], list[str]]:
    """Rows of the table, and a line for each input that failed."""
    rows: list[Row] = []
    failed: list[str] = []
    for item in items:
        try:
            for scans in _cases(item):
                rows.append(_predict_one(adapter, members, item, scans, writer, place))
        except (ReadError, UserError) as error:
            failed.append(f"{item.shown}: {error}")
        except (MemoryError, torch.OutOfMemoryError):
            failed.append(f"{item.shown}: does not fit into memory")
    return rows, failed


def _cases(item: Item) -> Iterator[Sequence[Scan | None]]:
    """What is predicted at once: each scan of a file or series, or the channels of a case."""
    if item.channels:
        yield read_channels(item.channels)
    else:
        yield from ([scan] for scan in scans_of(item.source))


def _predict_one(
    adapter: Adapter[Any, Any],
    members: Sequence[TaskModel],
    item: Item,
    scans: Sequence[Scan | None],
    writer: Writer,
    place: torch.device,
) -> Row:
    scan = next(each for each in scans if each is not None)  # on whose grid the output lies
    sample = adapter.unlabelled(scans)
    return {"file": item.shown if not scan.part else f"{item.shown}#{scan.part}"} | writer.write(
        members, sample, item, scan, place
    )


def _checked(adapter: Adapter[Any, Any], device: str, format: str, probabilities: bool, uncertainty: bool) -> Options:
    task = adapter.spec.task.name
    if device not in DEVICES:
        raise UserError(f"device '{device}' is not known: choose {', '.join(DEVICES)}")
    if format not in FORMATS:
        raise UserError(f"format '{format}' is not known: choose {', '.join(FORMATS)}")
    if task != "segmentation":
        for name, asked in (
            ("format", format != "auto"),
            ("probabilities", probabilities),
            ("uncertainty", uncertainty),
        ):
            if asked:
                raise UserError(f"--{name} is for segmentation; the outputs of {task} are always the same")
    return Options(format, probabilities, uncertainty)


def _refuse_output(inputs: Sequence[Path], out: Path, items: Sequence[Item], table: Path) -> None:
    """UserError where something would be written over, or would be found as an input the next time."""
    for given in inputs:
        if given.is_dir() and out.resolve().is_relative_to(given.resolve()):
            raise UserError(f"the output folder {out} lies in the input folder {given}; put it elsewhere")
    candidates = [table, *(out / (item.name + suffix) for item in items for suffix in SUFFIXES)]
    there = [path for path in candidates if path.exists()]
    if there:
        raise UserError(f"{there[0]} is there already and is not written over; choose another --out")


def _serial(model: Path) -> str:
    """Tells this model from others, in DICOM objects."""
    return sha256((model if model.is_dir() else model.parent) / INFO)[:16]
