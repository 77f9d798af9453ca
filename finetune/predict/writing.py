"""One scan's prediction, written in the form that fits its task and its source."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.sources import shown
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.readers.scratch import scratch_folder
from scanfoundry.finetune.boxes.wbc import Found
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.inference.segmented import Segmented, Wanted
from scanfoundry.finetune.predict import image, nifti
from scanfoundry.finetune.predict.boxes import as_json
from scanfoundry.finetune.predict.inputs import InputCase
from scanfoundry.finetune.predict.tables import Row, volumes_of
from scanfoundry.finetune.task import Adapter, Sample, Spec, TaskModel
from scanfoundry.finetune.tasks.segmentation import Segmentation

FORMATS = ("auto", "nifti", "dicom-seg")
SUFFIXES = (".nii.gz", ".png", ".dcm")


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    format: str
    probabilities: bool
    uncertainty: bool


def columns_of(spec: Spec) -> list[str]:
    """The columns of the task's table, in the order in which `Writer.write` fills them."""
    if isinstance(spec.task, SegmentationTask):
        empty = Scan(np.zeros((1, 1, 1, 1), np.uint8), (1.0, 1.0, 1.0))
        return ["file", "output", *volumes_of(empty.voxels[0], empty, spec.classes)]
    if isinstance(spec.task, RegressionTask):
        return ["file", spec.task.label_column]
    return ["file", "prediction", *spec.classes]


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
    ) -> Row:
        """Predict one scan and write its files; gives its part of the table."""
        self.out.mkdir(parents=True, exist_ok=True)
        if isinstance(self.adapter, Segmentation):
            # Beside the outputs: a scratch disk that holds these holds the probabilities before they are packed.
            with scratch_folder() as store:
                wanted = Wanted(self.options.probabilities, self.options.uncertainty, store=store)
                made = self.adapter.segment(members, sample, device, wanted)
                return self._segmentation(made, item, scan)
        prediction = self.adapter.predict(members, sample, device)
        if self.adapter.spec.task.name == "detection":
            return self._boxes(prediction, item, scan)
        if isinstance(self.adapter.spec.task, RegressionTask):
            return {self.adapter.spec.task.label_column: prediction}
        named = dict(zip(self.adapter.spec.classes, (float(p) for p in prediction), strict=True))
        return {"prediction": max(named, key=lambda name: named[name])} | named

    def _segmentation(self, made: Segmented, item: InputCase, scan: Scan) -> Row:
        labels = self._labels(made, item, scan)
        if made.probabilities is not None:
            self._fractions("probabilities", made.probabilities, item, scan)
        for name, values in made.maps.items():
            self._fractions(name, values, item, scan)
        return {"output": self._named(labels)} | volumes_of(made.labels, scan, self.adapter.spec.classes)

    def _labels(self, made: Segmented, item: InputCase, scan: Scan) -> Path:
        if self.options.format == "dicom-seg" and not item.is_dicom:
            raise UserError("no DICOM: --format dicom-seg needs a series to refer to; leave it out")
        if item.is_dicom and self.options.format != "nifti":
            try:
                return self._dicom_seg(made, item, scan)
            except UserError as error:
                if self.options.format == "dicom-seg":
                    raise
                self.tell(f"{item.shown}: {self._plain(scan)} and no DICOM-SEG: {error}")
        numbers = self.adapter.spec.labels.decode(made.labels)
        if self._plain(scan) == "PNG" and numbers.dtype.itemsize <= 2 and numbers.dtype.kind == "u":
            return self._put(item, scan, ".png", lambda target: image.write_labels(target, numbers))
        own = _own_file(item)
        return self._put(item, scan, ".nii.gz", lambda target: nifti.write_labels(target, numbers, scan, own))

    def _dicom_seg(self, made: Segmented, item: InputCase, scan: Scan) -> Path:
        from scanfoundry.finetune.predict import dicom_seg
        from scanfoundry.finetune.predict.maker import Maker

        maker, classes = Maker(self.serial, "segmentation"), self.adapter.spec.classes
        written = self.adapter.spec.labels.written
        return self._put(
            item, scan, ".dcm",
            lambda target: dicom_seg.write_labels(target, made.labels, scan, item.source, classes, maker, written),
        )  # fmt: skip

    def _plain(self, scan: Scan) -> str:
        """The form of what is no DICOM object: an image without a place in the world is a PNG unless NIfTI is asked."""
        is_image = scan.affine is None and scan.voxels.shape[1] == 1
        return "PNG" if is_image and self.options.format != "nifti" else "NIfTI"

    def _fractions(self, name: str, values: npt.NDArray, item: InputCase, scan: Scan) -> None:
        if self._plain(scan) == "PNG" and values.ndim == 3:
            self._put(item, scan, f"_{name}.png", lambda target: image.write_fractions(target, values))
        else:
            own = _own_file(item)
            self._put(item, scan, f"_{name}.nii.gz", lambda target: nifti.write_fractions(target, values, scan, own))

    def _boxes(self, prediction: Found, item: InputCase, scan: Scan) -> Row:
        boxes = prediction.boxes
        row: Row = {"boxes": as_json(prediction, scan, self.adapter.spec.classes)}
        if not item.is_dicom:
            return row
        return {"report": self._report(prediction, item, scan) if len(boxes) else None} | row

    def _report(self, found: Found, item: InputCase, scan: Scan) -> str | None:
        from scanfoundry.finetune.predict import dicom_sr
        from scanfoundry.finetune.predict.maker import Maker

        maker, classes = Maker(self.serial, "detection"), self.adapter.spec.classes
        try:
            return self._named(
                self._put(
                    item, scan, ".dcm",
                    lambda target: dicom_sr.write_report(target, found, scan, item.source, classes, maker),
                )
            )  # fmt: skip
        except UserError as error:
            self.tell(f"{item.shown}: boxes as JSON alone: {error}")
            return None

    def _named(self, path: Path) -> str:
        """How the table calls an output."""
        return shown(path.relative_to(self.out).as_posix())

    def _put(self, item: InputCase, scan: Scan, suffix: str, write: Callable[[Path], None]) -> Path:
        """Let `write` make a file of this scan; UserError where something lies there."""
        part = f"_{scan.part}" if scan.part else ""
        target = self.out / f"{item.name}{part}{suffix}"
        if target.exists():
            raise UserError(f"{target} is there already and is not written over")
        target.parent.mkdir(parents=True, exist_ok=True)
        self.intend(target)
        write(target)
        self.written.append(target)
        return target


def _own_file(item: InputCase) -> Path | None:
    return item.source.paths[0] if item.source.kind == "nifti" else None
