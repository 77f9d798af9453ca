"""NPY and NPZ; of MedMNIST's files one scan per entry."""

import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from itertools import repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scanfoundry.datasets.readers.guard import check_voxels, reason_of
from scanfoundry.datasets.readers.label_values import exact, is_white, whole_numbers
from scanfoundry.datasets.readers.labels import Greys, Labels
from scanfoundry.datasets.readers.member import ArchiveMember, check_member, check_not_packed, open_file, open_member
from scanfoundry.datasets.readers.nifti import compact
from scanfoundry.datasets.readers.scan import ReadError, Scan, Source

MIN_SIDE = 8  # what is smaller along height or width is an affine or a list, not an image
MAX_LABELS = 64  # per entry
_ERRORS = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, NotImplementedError, RuntimeError),
    *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
)
_SIDES = {"training": "train", "valid": "val", "validation": "val", "testing": "test"}  # other names of MedMNIST's
STACK = re.compile(r"(?:(train|training|val|valid|validation|test|testing)_)?images")


def read_array(source: Source) -> Iterator[Scan]:
    """The scans of an .npy or .npz: (H, W), (D, H, W), or either with a last axis of 1 or 3 channels; spacing 1.

    An NPZ with `{train,val,test}_images` (MedMNIST) or `images` holds one scan per entry (part and patient
    'train-17'), its official split, and from `..._labels` or `..._masks` its classes, numbers or mask. Of another NPZ,
    `image` (with `label` or `mask`), or each array that can be an image, is a scan. Pickled objects are refused.
    """
    path = source.paths[0]
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as stream:
                yield _scan(open_file(path, stream).whole())
            return
        with zipfile.ZipFile(path) as archive:
            check_not_packed(archive, path.stat().st_size)
            names = [info.filename.removesuffix(".npy") for info in archive.infolist()]
            if len(set(names)) < len(names):
                raise ReadError("holds two arrays of one name")
            stacks = [match for name in names if (match := STACK.fullmatch(name))]
            for match in stacks:
                yield from _entries(archive, match.string, match[1] or "", names)
            if not stacks:
                yield from _single(archive, names)
    except _ERRORS as error:
        raise ReadError(f"not a readable NPY or NPZ: {reason_of(error, path)}") from error


def _entries(archive: zipfile.ZipFile, name: str, split: str, names: list[str]) -> Iterator[Scan]:
    prefix = f"{split}_" if split else ""
    beside = [each for each in (f"{prefix}{kind}" for kind in ("labels", "label", "masks", "mask")) if each in names]
    for each in (name, *beside):
        check_member(archive, each)
    images = open_member(archive, name)
    if len(images.shape) < 3:
        raise ReadError(f"'{name}' of shape {images.shape} is no stack of images")
    known = [open_member(archive, each) for each in beside]
    for each, labels in zip(beside, known, strict=True):
        if labels.shape[:1] != images.shape[:1]:
            raise ReadError(f"'{each}' of shape {labels.shape} does not go with '{name}' of shape {images.shape}")
    rows = zip(*(each.entries() for each in known), strict=True) if known else repeat(())
    for number, (image, row) in enumerate(zip(images.entries(), rows, strict=False)):
        part = f"{prefix.replace('_', '-')}{number}"
        yield _scan(image, part, row, patient=part, split=_SIDES.get(split, split))


def _single(archive: zipfile.ZipFile, names: list[str]) -> Iterator[Scan]:
    for name in names:
        check_member(archive, name)
    if "image" in names:
        beside = [open_member(archive, each).whole() for each in ("label", "mask") if each in names]
        yield _scan(open_member(archive, "image").whole(), "", beside)
        return
    found = [name for name in names if _can_be_image(open_member(archive, name))]
    if not found:
        raise ReadError("holds no array that can be an image")
    for name in found:
        yield _scan(open_member(archive, name).whole(), name if len(found) > 1 else "")


def _can_be_image(member: ArchiveMember) -> bool:
    sides = [side for side in member.shape if side > 4]
    return member.dtype.kind in "iufb" and len(member.shape) > 1 and len(sides) > 1 and min(sides[-2:]) >= MIN_SIDE


def _scan(array: NDArray, part: str = "", beside: Any = (), patient: str = "", split: str = "") -> Scan:
    check_voxels(array)
    channels = array.ndim > 2 and array.shape[-1] in (1, 3)
    shape = array.shape[:-1] if channels else array.shape
    if not 2 <= len(shape) <= 3 or (not channels and shape[-1] <= 4 and len(shape) == 3):
        raise ReadError(f"shape {array.shape}; read are (H, W), (D, H, W), and either with 1 or 3 channels behind")
    voxels = np.moveaxis(array, -1, 0) if channels else array[None]
    if len(shape) == 2:
        voxels = voxels[:, None]
    labels = _labels([np.asarray(each) for each in beside], shape)
    voxels = np.ascontiguousarray(compact(voxels))
    return Scan(voxels, (1.0, 1.0, 1.0), part=part, patient=patient, split=split, labels=labels)


def _labels(beside: list[NDArray], shape: tuple[int, ...]) -> Labels:
    """A mask where an array has the image's shape, else classes (whole numbers, text) or numbers ('label-0', ...)."""
    mask: NDArray | None = None
    greys: Greys = ""
    classes: dict[str, str] = {}
    targets: dict[str, float] = {}
    for values in beside:
        if values.shape == shape or values.shape == (*shape, 1):
            check_voxels(values)
            numbers = exact(values.reshape(shape if len(shape) == 3 else (1, *shape)))
            mask, greys = whole_numbers(numbers, image=True), "white" if is_white(numbers) else ""
        elif values.ndim > 1 or values.size > MAX_LABELS or values.dtype.kind not in "iubfUS":
            raise ReadError(f"labels of shape {values.shape} and type {values.dtype} for an image of shape {shape}")
        else:
            names = ["label"] if values.size == 1 else [f"label-{number}" for number in range(values.size)]
            for name, value in zip(names, values.ravel().tolist(), strict=True):
                if isinstance(value, float):
                    targets |= {name: value} if np.isfinite(value) else {}
                else:
                    classes[name] = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    return Labels(mask=mask, classes=classes, targets=targets, greys=greys)
