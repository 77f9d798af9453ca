"""A scan in memory, where it came from, and the one exception of a file that cannot become one."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scanfoundry.configs.geometry import Spacing3D
from scanfoundry.datasets.readers.labels import Labels


class ReadError(Exception):
    """A file holds no usable scan. The text is the reason, without the file's path or anything of its header."""


class NothingToStore(ReadError):
    """A file holds no image by its nature (a report, a treatment plan, a directory). It is left out, and is not bad."""


@dataclass(frozen=True)
class Source:
    """What one or several scans are read from: a file, or the files of a DICOM series or of a frame folder.

    Attributes:
        root: folder of the input.
        kind: name of the format in `readers.formats`.
        identity: what makes it that scan wherever it lies, the relative path or a DICOM UID. It is only ever hashed.
        files: relative to `root`, '/' between the parts. The first one names the source to people. Those of a long
            series are packed: see `listing.PackedNames`.
        size: bytes of all files.
        modified: time of the newest file, ns.
        patient: whom the header says the scan is of; None where it does not, and the path decides.
        study: that the header says it belongs to; None where the path decides.
    """

    root: Path
    kind: str
    identity: str
    files: Sequence[str]
    size: int
    modified: int
    patient: str | None = None
    study: str | None = None

    @classmethod
    def of_files(cls, root: Path, kind: str, files: tuple[str, ...]) -> "Source":
        """A source that is known by the path of its first file.

        Raises:
            OSError: a file is not there.
        """
        states = [(root / name).stat() for name in files]
        size, modified = sum(each.st_size for each in states), max(each.st_mtime_ns for each in states)
        return cls(root, kind, files[0], files, size, modified)

    @property
    def relative(self) -> str:
        """The path by which people know the source."""
        return self.files[0]

    @property
    def paths(self) -> list[Path]:
        """All files, absolute or as the inputs were given."""
        return [self.root / name for name in self.files]


@dataclass(frozen=True)
class Scan:
    """One volume, image, or run of frames.

    Attributes:
        voxels: (C, D, H, W) in the file's own dtype (native byte order); an image has D = 1.
        spacing: (D, H, W) in mm; 1 where the file knows none.
        affine: (4, 4) from voxel (x, y, z) = (W, H, D) to world (RAS mm), or None for an image.
        orientation: world direction in which D, H and W grow ('SAR' is D to superior, H to anterior, W to right); ''
            for an image.
        modality: 'ct', 'mr', 'us', 'xr', 'mg', 'pt', 'nm', ... where the file itself knows it, else ''.
        facts: of the whitelist `FACTS`, where the file knows them.
        warnings: of `WARNINGS`: what a person should look at before the scan is used.
        part: names the scan among several of one source ('3', 'train-17'); '' for the only one.
        patient: tells patients of one source apart (entries of an .npz); '' where the source is of one patient.
        split: official split of the entry: 'train', 'val', 'test' or ''.
        frames: True where D counts frames of a video, and slices are images of their own.
        labels: what the file itself says of the scan (MedMNIST); others come from `--labels` and `--masks`.
        indices: (D, H, W) of a file in palette colours, whose `voxels` are the colours: what a mask in it means.
        palette: (N, 3) uint8: the colour of each index.
        lossy: True where the file's compression has changed its values (JPEG).
    """

    voxels: NDArray
    spacing: Spacing3D
    affine: NDArray[np.float64] | None = None
    orientation: str = ""
    modality: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    part: str = ""
    patient: str = ""
    split: str = ""
    frames: bool = False
    labels: Labels = field(default_factory=Labels)
    indices: NDArray[np.unsignedinteger] | None = None
    palette: NDArray[np.uint8] | None = None
    lossy: bool = False


FACTS = ("manufacturer", "model", "body_part", "sequence")
WARNINGS = ("burned_in_annotation", "face")
