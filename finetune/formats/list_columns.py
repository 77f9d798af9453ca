"""Which columns of a list of cases hold the images, the labels and the patients."""

from collections.abc import Sequence
from pathlib import Path

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.tables.rows import column_named, listed
from scanfoundry.datasets.readers import SUFFIXES, suffix_of
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.labels import ReadsColumn
from scanfoundry.finetune.config.tasks.registry import Task
from scanfoundry.finetune.formats.entries import Entries

# The first that is there; else all 'image_...' are channels.
IMAGE_COLUMNS = ("image", "file", "filename", "path", "image_path", "image_file")
MASK_COLUMNS = ("label", "mask", "segmentation", "seg", "label_path", "mask_path")
PATIENT_COLUMNS = ("patient", "patient_id", "subject", "subject_id")


def image_columns(path: Path, columns: Sequence[str], data: LabelledData) -> dict[str, str]:
    """Column by channel.

    Raises:
        UserError: there is none, or one that data.channels names is not there.
    """
    if data.channels is not None:
        found = {name: column_named(columns, column) for name, column in data.channels.items()}
        absent = [data.channels[name] for name, column in found.items() if column is None]
        if absent:
            raise UserError(f"{path} has no column '{absent[0]}' (data.channels); it has: {listed(columns)}")
        return {name: column for name, column in found.items() if column is not None}
    one = next((column for name in IMAGE_COLUMNS if (column := column_named(columns, name))), None)
    several = {column[len("image_") :]: column for column in columns if column.lower().startswith("image_")}
    if one is None and not several:
        raise UserError(f"{path} has no column 'image' of paths; it has: {listed(columns)}; see data.channels")
    return {"image": one} if one is not None else several


def label_column(path: Path, found: Entries, task: Task) -> str:
    """The column that the task asks for; of masks the first one that holds files.

    Raises:
        UserError: there is none.
    """
    if isinstance(task, ReadsColumn):
        column = column_named(found.columns, task.label_column)
        if column is None:
            raise UserError(
                f"{path} has no column '{task.label_column}'; it has: {listed(found.columns)}; set task.label_column"
            )
        return column
    known = [column for name in MASK_COLUMNS if (column := column_named(found.columns, name))]
    if not known:
        raise UserError(f"{path} has no column 'label' of paths; it has: {listed(found.columns)}")
    return next((column for column in known if _holds_files(found, column)), known[0])


def patient_column(columns: Sequence[str]) -> str | None:
    """The column that names patients; None where there is none."""
    return next((column for name in PATIENT_COLUMNS if (column := column_named(columns, name))), None)


def _holds_files(found: Entries, column: str) -> bool:
    cells = [entry.cells.get(column) for entry in found.entries]
    return any(isinstance(each, str) and suffix_of(each.strip()) in SUFFIXES for each in cells)
