"""The kinds of labels that a task may read from a data set; the formats know these, and no task.

A task's configuration inherits from the kind that it reads.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from scanfoundry.datasets.readers.labels import IGNORED
from scanfoundry.finetune.config.tasks.base import TaskConfig

_LISTS, _MASKS = ("labels.csv",), ("labels", "masks")


def _class_names(value: Any) -> Any:
    """Whole numbers are names too; what YAML has turned into something else is not what was typed."""
    if not isinstance(value, list):
        return value
    turned = [each for each in value if isinstance(each, bool | float) or each is None]
    if turned:
        raise ValueError(f"YAML reads one of these names as {turned[0]}: put names such as no, yes and 1.0 in quotes")
    names = [str(each) if isinstance(each, int) else each for each in value]
    if all(isinstance(name, str) for name in names) and len(set(names)) < len(names):
        raise ValueError("a class is named twice")
    return names


ClassNames = Annotated[list[str], BeforeValidator(_class_names)]


class ReadsColumn(TaskConfig):
    """One label for each scan, from a column of a list, an archive, or shards."""

    label_files: ClassVar[tuple[str, ...]] = _LISTS

    id_column: str | None = None  # stem or file name of the scan; None: the first of id, file, filename, image, name
    label_column: str


class ReadsClasses(ReadsColumn):
    """The column holds classes; a case's target is an index into them."""

    label_column: str = "class"
    classes: ClassNames | None = None  # None: the values of the column, sorted


class ReadsValues(ReadsColumn):
    """The column holds numbers; a case's target is one."""

    label_column: str = "value"


class ReadsMasks(TaskConfig):
    """Label maps of integers, 0 the background."""

    label_files: ClassVar[tuple[str, ...]] = _MASKS

    classes: ClassNames | None = None  # names of labels 1..n; None: read from the label maps
    values: dict[int, str] | None = None  # class by value, several may share one; 'ignore': as `ignore`
    ignore: int | None = None  # value of voxels that nobody has looked at: in no loss, no sample, no metric

    @model_validator(mode="after")
    def _values_are_classes(self) -> "ReadsMasks":
        if self.values is not None and self.classes is not None:
            raise ValueError("task.values names the classes by value: leave out task.classes")
        if self.ignore == 0 or (self.values and self.values.get(0, "background").lower() != "background"):
            raise ValueError("0 is the background: it is neither a class nor ignored")
        named = {value for value, name in (self.values or {}).items() if value != 0 and name.lower() != IGNORED}
        if self.values is not None and not named:
            raise ValueError("task.values names no class")
        if self.values and self.ignore is not None and self.values.get(self.ignore, IGNORED).lower() != IGNORED:
            raise ValueError(f"{self.ignore} is both task.ignore and a class of task.values")
        if self.classes and self.ignore is not None and 1 <= self.ignore <= len(self.classes):
            raise ValueError(f"{self.ignore} is both task.ignore and a class of task.classes")
        return self


class ReadsBoxes(TaskConfig):
    """Boxes of findings: from COCO, Pascal VOC or CSV, or of masks."""

    label_files: ClassVar[tuple[str, ...]] = ("Annotations", "annotations.json", *_MASKS, *_LISTS)

    id_column: str | None = None
    label_column: str | None = None  # of a CSV of boxes: the class of each; None: 'label' where there is one
    classes: ClassNames | None = None  # of findings; None: those of the boxes, or of the named values of the masks
    masks: Literal["components", "instances"] = "components"  # instances: each value of a mask is one finding
    min_voxels: int = Field(default=16, ge=1)  # findings of a mask below this are none

    @model_validator(mode="after")
    def _instances_are_no_classes(self) -> "ReadsBoxes":
        if self.masks == "instances" and self.classes is not None and len(self.classes) > 1:
            raise ValueError("the values of instance masks are findings, not classes: give one class")
        return self
