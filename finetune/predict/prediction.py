"""`predict`: a fine-tuned or released model on new scans; output in the geometry of the input."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.text import printable
from scanfoundry.datasets.readers.scratch import scratch_below
from scanfoundry.finetune.config.tasks.registry import tasks
from scanfoundry.finetune.model_file import load_model, model_digest, pick_device
from scanfoundry.finetune.predict.batch import Force, PredictionBatch
from scanfoundry.finetune.predict.inputs import InputCase, cases_of, find_items
from scanfoundry.finetune.predict.outputs import AUTO, names_of, output_formats, suffixes
from scanfoundry.finetune.predict.progress import is_under_way, opened
from scanfoundry.finetune.predict.tables import Table, only_reasons
from scanfoundry.finetune.predict.writing import Options, Writer
from scanfoundry.finetune.task import Adapter

logger = logging.getLogger(__name__)

DEVICES = ("auto", "cpu", "cuda")
SOME_FAILED = 3  # the command line's exit code

Tell = Callable[[str], None]


class SomeFailed(UserError):
    """The batch is done, and some inputs could not be predicted: they are in the table, with the reason."""

    exit_code = SOME_FAILED


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
    force: bool = False,
) -> list[Path]:
    """Predict every scan under `inputs` (files or folders) with a model; gives what it wrote.

    model    a run folder of a fine-tuning; or a released segmentation: its name, its folder or the authors' file

    Segmentation: a label map for each scan and the volumes of all in predictions.csv. Classification: predictions.csv.
    Detection: predictions.json, and a structured report for each DICOM series. See docs/finetuning.md.
    The table grows with every scan. The same call goes on where a killed one was; nothing that is finished is done
    again.
    format   'auto' (NIfTI for volumes, PNG for images, DICOM-SEG for DICOM), 'nifti', 'dicom-seg'
    tell     takes lines for people: what fell back to another format, and each scan that failed; logged by default
    force    predict also what is evidently of another kind than the training scans (an MR for a model of CT)
    Raises UserError before any work for an unusable model, input or output folder; SomeFailed after all of it where a
    scan could not be predicted: the others are then written, and it is in the table with the reason.
    """
    tell = tell or (lambda line: logger.warning("%s", printable(line)))
    model, out, inputs = Path(model), Path(out), [Path(path) for path in inputs]
    adapter, members = load_model(model)
    options = _checked(adapter, device, format, probabilities, uncertainty)
    items, refused = find_items(inputs)
    items, others = cases_of(items, adapter.spec.channels)
    table = out / adapter.table
    _check_output(inputs, out, items, table)
    place = pick_device(device)
    serial = model_digest(model)[:16]  # tells this model from others, in DICOM objects
    command = f"{serial} {options} {force}"
    with opened(out, hashlib.sha256(command.encode()).hexdigest()[:16]) as progress:
        writer = Writer(adapter, options, out, serial, tell)
        batch = PredictionBatch(
            adapter, [member.to(place) for member in members], place, writer, progress,
            Table(table, ["file", *adapter.columns()], adapter.conventions), tell, Force(force),
        )  # fmt: skip
        try:
            failed = batch.run(items, [*refused, *others])
        except KeyboardInterrupt:
            tell(f"stopped after {batch.over} of {len(items)} inputs: the same command goes on with the others")
            raise
        progress.complete()
    writer.written.append(table)
    if failed:
        done = f"{batch.predicted} scans are in {out}"
        raise SomeFailed(
            f"{len(failed)} inputs could not be predicted (in {table.name}, with the reason; the first: {failed[0]}); "
            f"{done}"
        )
    return writer.written


def _checked(adapter: Adapter[Any, Any], device: str, format: str, probabilities: bool, uncertainty: bool) -> Options:
    task = adapter.spec.task.name
    if device not in DEVICES:
        raise UserError(f"device '{device}' is not known: choose {', '.join(DEVICES)}")
    known = [AUTO, *names_of(tuple(each.kind for each in output_formats()))]
    if format not in known:
        raise UserError(f"format '{format}' is not known: choose {', '.join(known)}")
    if format not in (AUTO, *names_of(adapter.files)):
        able = [name for name, parts in tasks().items() if format in names_of(parts.adapter.files)]
        raise UserError(f"--format is for {' and '.join(able)}; the outputs of {task} are always the same")
    for option, asked in (("probabilities", probabilities), ("uncertainty", uncertainty)):
        if asked and option not in adapter.options:
            able = [name for name, parts in tasks().items() if option in parts.adapter.options]
            raise UserError(f"--{option} is for {' and '.join(able)}; the outputs of {task} are always the same")
    return Options(format, probabilities, uncertainty)


def _check_output(inputs: Sequence[Path], out: Path, items: Sequence[InputCase], table: Path) -> None:
    """UserError where something would be written over, or would be found as an input the next time.

    What an unfinished batch has left is no obstacle, nor a table that tells of failures alone.
    """
    for given in inputs:
        if given.is_dir() and out.resolve().is_relative_to(given.resolve()):
            raise UserError(f"the output folder {out} lies in the input folder {given}; put it elsewhere")
    if is_under_way(out):
        return
    candidates = [out / (item.name + suffix) for item in items for suffix in suffixes()]
    there = [path for path in ([] if only_reasons(table) else [table]) + candidates if path.exists()]
    if there:
        raise UserError(f"{there[0]} is there already and is not written over; choose another --out")
