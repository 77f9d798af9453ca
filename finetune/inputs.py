"""What there is to predict on: files and DICOM series under the inputs, and a name for the output of each."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import keyed_hash, site_key
from scanforge.datasets.labels.names import parts_of
from scanforge.datasets.readers import SUFFIXES, Source, file_source, find_files
from scanforge.datasets.shards.quarantine import Quarantined
from scanforge.datasets.shards.survey import find_dicom


@dataclass(frozen=True)
class Item:
    """A source of one scan or more. name: of its outputs, relative to their folder and without suffix.

    A file's outputs are called like the file. A DICOM series' files and folders are often called after the patient:
    its outputs are called by a keyed hash, the same one as its scans have in shards and in a study.
    """

    source: Source
    name: str

    @property
    def shown(self) -> str:
        """The path that its user knows it by."""
        return self.source.relative

    @property
    def is_dicom(self) -> bool:
        """Whether it can be referred to by a DICOM object."""
        return self.source.kind.startswith("dicom")


def find_items(inputs: Sequence[Path]) -> tuple[list[Item], list[Quarantined]]:
    """The scans' sources under `inputs` in the order of their names; and the files that are damaged DICOM.

    UserError where an input is missing, nothing can be read, or two inputs would have outputs of one name.
    """
    files, others = find_files(inputs)
    sources = [file_source(root, relative) for root, relative in files]
    items = [Item(source, _name_of_file(source.relative)) for source in sources]
    taken = {(source.root, name) for source in sources for name in source.files}  # a header's voxels
    damaged: list[Quarantined] = []
    for root in sorted({root for root, _ in others}):
        names = [relative for each, relative in others if each == root and (root, relative) not in taken]
        series, none = find_dicom(root, names, 1, lambda what, done, total: None)
        items += [Item(source, _name_of_series(source)) for source in series]
        damaged += [line for line in none if line.kind != "skipped"]
    if not items and not damaged:
        known = ", ".join(SUFFIXES)
        raise UserError(f"no readable scan under {', '.join(map(str, inputs))}; read are DICOM and {known}")
    items.sort(key=lambda item: (item.name, item.shown))
    for one, other in pairwise(items):
        if one.name == other.name:
            raise UserError(
                f"the outputs of two inputs would be called '{one.name}': {one.shown} and {other.shown}; "
                "give them to separate calls"
            )
    return items, damaged


def _name_of_file(relative: str) -> str:
    return "/".join(parts_of(relative))


def _name_of_series(source: Source) -> str:
    return f"series-{keyed_hash(site_key(), 'scan', source.identity)[:12]}"
