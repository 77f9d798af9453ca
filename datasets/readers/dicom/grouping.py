"""From headers to sources: which files are one volume, which an image, which a copy, which nothing."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from scanfoundry.datasets.readers import UNREAD, suffix_of
from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.identity import patient_of
from scanfoundry.datasets.readers.dicom.headers.sop_classes import CT, MR, MULTI_FRAME_VOLUMES, NM, PT, why_no_image
from scanfoundry.datasets.readers.dicom.pixels.integrity import files_to_read
from scanfoundry.datasets.readers.dicom.series.grid import SAME_DIRECTION
from scanfoundry.datasets.readers.dicom.series.planes import is_mosaic
from scanfoundry.datasets.readers.listing import packed_names
from scanfoundry.datasets.readers.scan import Source

Refusal = tuple[str, str, str]  # relative path, reason, 'skipped' (nothing to store) or 'refused'
_STATES = {
    "other": ("not DICOM", "skipped"),
    "pretended": ("named as DICOM, but there is no DICOM header at its start", "refused"),
    "damaged": ("damaged DICOM header", "refused"),
    "bomb": ("deflated to a tiny part of its size: refused as a decompression bomb", "refused"),
    "unreadable": ("the file cannot be opened", "refused"),
}


def group(headers: Iterable[FileHeader], root: Path) -> tuple[list[Source], list[Refusal]]:
    """Group files to sources by their headers.

    Slices of one series, kind, size and orientation are one source, wherever they lie below `root`; everything else is
    a source per file. Of the copies of one picture the first sound one is kept. Localisers are left out: they are a few
    thick planes (MR) or projections that are no Hounsfield units (CT), made for planning.

    Args:
        headers: of all files.
        root: folder of the input.

    Returns:
        Sources and refusals. Every file is in exactly one of either, by its path relative to `root`.
    """
    refusals: list[Refusal] = []
    images: list[FileHeader] = []
    for file in sorted(headers, key=lambda file: str(file.path)):
        reason, kind = _why_not(file)
        if kind:
            refusals.append((_relative(file, root), reason, kind))
        else:
            images.append(file)
    kept = _without_copies(images, root, refusals)
    sources: list[Source] = []
    for members in _series(kept):
        sources += _sources(members, root)
    return sorted(sources, key=lambda source: source.relative), sorted(refusals)


def _why_not(file: FileHeader) -> tuple[str, str]:
    if file.state == "other" and suffix_of(file.path) in UNREAD:
        return UNREAD[suffix_of(file.path)], "refused"
    if file.state in _STATES:
        return _STATES[file.state]
    reason = why_no_image(file.sop_class, file.modality, file.has_pixels)
    if reason:
        return reason, "skipped"
    if not file.has_pixels:
        return "no pixel data found: none stored, or the header is cut or damaged", "refused"
    if "LOCALIZER" in file.image_type or "SCOUT" in file.image_type:
        return "localiser: for planning, not a scan", "skipped"
    return "", ""


def _without_copies(files: list[FileHeader], root: Path, refusals: list[Refusal]) -> list[FileHeader]:
    """One file per instance. What shares the UID but not shape, place or a slice's pixels is no copy of it.

    Anonymisers share UIDs. Two slices of one place are then told apart as all are, or their series is refused.
    """
    instances: dict[tuple[str, ...], list[FileHeader]] = defaultdict(list)
    for file in files:
        instances[_instance(file)].append(file)
    kept: list[FileHeader] = []
    for copies in instances.values():
        instead = copies if len(copies) == 1 else files_to_read(copies)
        for file, read in zip(copies, instead, strict=True):
            if read is file:
                kept.append(file)
            else:
                reason = f"another file holds the same instance: {_relative(read, root)}"
                refusals.append((_relative(file, root), reason, "skipped"))
    return kept


def _instance(file: FileHeader) -> tuple[str, ...]:
    position = None if file.position is None else tuple(number + 0.0 for number in file.position)  # -0 is 0
    place = (file.rows, file.columns, file.frames, file.samples, file.bits, file.instance, position)
    return (file.sop, file.study, file.series, file.patient, *(str(each) for each in place))


def _series(files: list[FileHeader]) -> list[list[FileHeader]]:
    """Files of one patient, study, series (by folder where it has no UID), sorted by instance number."""
    series: dict[tuple[str, ...], list[FileHeader]] = defaultdict(list)
    for file in files:
        where = file.series or f"{file.path.parent}\n{file.series_number}"
        series[(file.patient, file.study, where, file.modality)].append(file)
    return [sorted(members, key=lambda file: (file.instance, str(file.path))) for _, members in sorted(series.items())]


def is_volume(file: FileHeader) -> bool:
    """Whether the file alone is a volume: an enhanced object, a mosaic, a reconstructed nuclear tomography."""
    if file.samples != 1:
        return False
    if file.sop_class == NM:
        return file.frames > 1 and "RECON TOMO" in file.image_type
    return is_mosaic(file) or (file.functional_groups and file.sop_class in MULTI_FRAME_VOLUMES and file.frames > 1)


def is_slice(file: FileHeader) -> bool:
    """Whether the file can be one slice among others."""
    scanned = file.sop_class in (CT, MR, PT) or file.modality in ("CT", "MR", "PT")
    return scanned and file.frames == 1 and file.position is not None and file.orientation is not None


def _sources(members: list[FileHeader], root: Path) -> list[Source]:
    """The sources of one series: whole volumes, stacks of slices, and single images."""
    stacks: dict[tuple[object, ...], list[list[FileHeader]]] = defaultdict(list)
    alone: list[FileHeader] = []
    for file in members:
        if is_volume(file) and not is_mosaic(file):
            alone.append(file)
        elif is_mosaic(file) or is_slice(file):
            _put(stacks[(file.sop_class, file.rows, file.columns, file.samples, is_mosaic(file))], file)
        else:
            alone.append(file)
    sources = [_source([file], root, "dicom-volume" if is_volume(file) else "dicom-image") for file in alone]
    for clusters in stacks.values():
        for cluster in clusters:
            single = len(cluster) == 1 and not is_volume(cluster[0])
            sources.append(_source(cluster, root, "dicom-image" if single else "dicom-volume"))
    return sources


def _put(clusters: list[list[FileHeader]], file: FileHeader) -> None:
    for cluster in clusters:
        if np.allclose(cluster[0].orientation or 0, file.orientation or 0, rtol=0, atol=SAME_DIRECTION):
            cluster.append(file)
            return
    clusters.append([file])


def _source(files: list[FileHeader], root: Path, kind: str) -> Source:
    first = files[0]
    names = packed_names([_relative(file, root) for file in files])
    if kind == "dicom-volume" and len(files) > 1:
        direction = [round(number, 3) + 0.0 for number in first.orientation or ()]
        which = first.series or min(file.sop for file in files)
        what = f"{first.rows}x{first.columns}x{first.samples} {direction} {first.modality}"
        identity = f"{first.patient} {first.study} {which} {what}"
    else:
        identity = " ".join(_instance(first))
    size, modified = sum(file.size for file in files), max(file.modified for file in files)
    return Source(root, kind, identity, names, size, modified, patient_of(first), first.study or None)


def _relative(file: FileHeader, root: Path) -> str:
    return file.path.relative_to(root).as_posix()
