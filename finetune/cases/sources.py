"""Scans in files: whole ones, a volume of a series, masks that belong together."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.readers import ReadError, Scan, Source, file_source, scans_of
from scanfoundry.datasets.readers.grey_levels import distinct
from scanfoundry.datasets.readers.label_values import raw_of
from scanfoundry.finetune.cases.cases import ScanSource


@dataclass(frozen=True)
class FileScan:
    """The one scan of a file or DICOM series, or volume number `volume` of a 4D one. mask: read for its numbers."""

    source: Source
    volume: int | None = None
    mask: bool = False

    def __str__(self) -> str:
        name = str(self.source.root / self.source.relative)
        return name if self.volume is None else f"{name} (volume {self.volume})"

    def read(self) -> Scan:
        """The scan; UserError where the file is damaged, or holds none or several."""
        try:
            if self.volume is not None:
                scan = next(islice(scans_of(self.source, self.mask), self.volume, None), None)
                if scan is None:
                    raise UserError(f"{self}: the file holds fewer volumes than its data set has channels")
                return replace(scan, part="")
            scans = list(islice(scans_of(self.source, self.mask), 2))
        except ReadError as error:
            raise UserError(f"{self}: {error}") from error
        except OSError as error:
            raise UserError(f"{self}: cannot be read: {error.strerror}") from error
        if len(scans) != 1:
            raise UserError(f"{self} holds {'several scans' if scans else 'no scan'}; give files of one scan each")
        return scans[0]


@dataclass(frozen=True)
class UnitedMasks:
    """Several masks of one scan, of one structure each, as one mask."""

    parts: tuple[FileScan, ...]

    def __str__(self) -> str:
        return str(self.parts[0])

    def read(self) -> Scan:
        """The union, 0 and the one value of all parts; UserError where they hold others, or shapes differ."""
        scans = [part.read() for part in self.parts]
        try:
            masks = [raw_of(scan).numbers for scan in scans]
        except ReadError as error:
            raise UserError(f"{self}: {error}") from error
        held = {value for mask in masks for value in distinct(mask)} - {0}
        if len({mask.shape for mask in masks}) > 1 or len(held) > 1:
            raise UserError(f"{self}: several masks of one scan must be of its shape and hold 0 and one value alone")
        return replace(scans[0], voxels=np.maximum.reduce(masks)[None], indices=None, palette=None)


def scan_file(path: Path) -> FileScan:
    """The file at `path`; UserError where it is missing or no reader knows its suffix."""
    if not os.path.isfile(path):  # False too for what can be no path
        raise UserError(f"the scan '{path}' does not exist")
    try:
        return FileScan(file_source(path.parent, path.name))
    except ReadError as error:
        raise UserError(f"{path}: {error}") from error


def for_its_numbers(source: ScanSource | None) -> ScanSource | None:
    """A source that is a mask, read as one: of a palette the indices, however it is to be shown."""
    return replace(source, mask=True) if isinstance(source, FileScan) else source


def mask_files(paths: Sequence[Path]) -> FileScan | UnitedMasks:
    """One mask file, or several of one scan."""
    files = tuple(replace(scan_file(path), mask=True) for path in paths)
    return files[0] if len(files) == 1 else UnitedMasks(files)
