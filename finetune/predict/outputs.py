"""The formats of files of predictions: one line for each, and those that plug-ins add ("output")."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.plugins import plugins
from scanfoundry.configs.registry import resolve
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.predict.inputs import InputCase
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.task_parts import BOXES, FRACTIONS, LABEL_MAP

AUTO = "auto"
HERE = "scanfoundry.finetune.predict"


@dataclass(frozen=True)
class Origin:
    """What a file of predictions is of: a scan, the input that it was read from, and the model."""

    scan: Scan
    item: InputCase
    spec: Spec
    serial: str  # tells this model from others


@dataclass(frozen=True)
class OutputFormat:
    """One format of one kind of file.

    Attributes:
        name: what `--format` calls it; '' where nobody can ask for it.
        kind: what it holds: 'label map', 'fractions' or 'boxes', or what a task of a plug-in puts.
        suffix: of its files.
        write: a function of the target, what is written and its `Origin`, or its 'module:attribute', which may raise a
            UserError where the standard has no way to say it.
        suits: whether `auto` takes it; of the formats of a kind the first that suits.
        needs: why it cannot be asked for, '' where it can.
        title: what messages call it.
    """

    name: str
    kind: str
    suffix: str
    write: Callable[[Path, Any, Origin], None] | str
    suits: Callable[[Any, Origin], bool] = lambda made, origin: False
    needs: Callable[[Origin], str] = lambda origin: ""
    title: str = ""

    def save(self, target: Path, made: Any, origin: Origin) -> None:
        """Write one file."""
        resolve(self.write)(target, made, origin)


def _is_dicom(made: Any, origin: Origin) -> bool:
    return origin.item.is_dicom


def _needs_dicom(origin: Origin) -> str:
    return "" if origin.item.is_dicom else "no DICOM: --format dicom-seg needs a series to refer to; leave it out"


def _is_image(made: Any, origin: Origin) -> bool:
    """An image without a place in the world is a PNG, unless NIfTI is asked for."""
    return origin.scan.affine is None and origin.scan.voxels.shape[1] == 1 and made.ndim == 3


def _fits_png(made: Any, origin: Origin) -> bool:
    numbers = origin.spec.labels.decode(made[:1])
    return _is_image(made, origin) and numbers.dtype.itemsize <= 2 and numbers.dtype.kind == "u"


def _always(made: Any, origin: Origin) -> bool:
    return True


FORMATS = (
    OutputFormat("dicom-seg", LABEL_MAP, ".dcm", f"{HERE}.dicom_seg:write", _is_dicom, _needs_dicom, "DICOM-SEG"),
    OutputFormat("", LABEL_MAP, ".png", f"{HERE}.image:save_labels", _fits_png, title="PNG"),
    OutputFormat("nifti", LABEL_MAP, ".nii.gz", f"{HERE}.nifti:save_labels", _always, title="NIfTI"),
    OutputFormat("", FRACTIONS, ".png", f"{HERE}.image:save_fractions", _is_image, title="PNG"),
    OutputFormat("nifti", FRACTIONS, ".nii.gz", f"{HERE}.nifti:save_fractions", _always, title="NIfTI"),
    OutputFormat("", BOXES, ".dcm", f"{HERE}.dicom_sr:write", _is_dicom, title="structured report"),
)


@cache
def output_formats() -> tuple[OutputFormat, ...]:
    """All formats; those of plug-ins come first, so that one that suits is taken before ours.

    Raises:
        UserError: a plug-in's entry is no `OutputFormat`.
    """
    added = plugins("output")
    for entry in added:
        if not isinstance(entry, OutputFormat):
            raise UserError(f"a plug-in's output is {entry!r}: give an OutputFormat")
    return (*added, *FORMATS)


def names_of(kinds: tuple[str, ...]) -> list[str]:
    """What `--format` may be for files of these kinds, beside 'auto'."""
    return list(dict.fromkeys(each.name for each in output_formats() if each.kind in kinds and each.name))


def suffixes() -> list[str]:
    """Of all files of predictions."""
    return list(dict.fromkeys(each.suffix for each in output_formats()))
