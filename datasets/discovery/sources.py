"""What a build works on: the sources in their order, assigned to shards before the first of them is read."""

import os
import stat
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from scanfoundry.configs.errors import Mistakes
from scanfoundry.datasets.discovery.quarantine import Quarantined, QuarantineKind
from scanfoundry.datasets.identity import keyed_hash, patient_of
from scanfoundry.datasets.labels import LabelRef
from scanfoundry.datasets.labels.label_index import LabelIndex
from scanfoundry.datasets.labels.pairing.study import shared_studies, studies_of
from scanfoundry.datasets.readers import Source, file_source, list_files

MAX_SOURCES = 512  # in a shard, whatever their size
NO_FILE_OF_IT = "no file of this data set: neither a scan by its name nor DICOM by its content"

File = tuple[Path, str]  # root, path relative to it

# Finds the DICOM among files of one root: its sources, and those files that are none, with the reason.
DicomFinder = Callable[[Path, Collection[str]], tuple[list[Source], list[Quarantined]]]
FrameFinder = Callable[[Path, Sequence[str]], tuple[list[Source], list[str]]]


@dataclass(frozen=True)
class PlannedSource:
    """A source to read.

    Attributes:
        order: keyed hash of the source's identity; it sorts the sources and names their samples.
        patient, study: keyed hashes of the patient and of the study.
        labels: of the source, their masks still files.
    """

    source: Source
    order: str
    patient: str  # keyed hash
    labels: LabelRef | None = None
    study: str = ""  # keyed hash


@dataclass(frozen=True)
class ShardPlan:
    """The sources that make up one shard. It depends on no other shard."""

    name: str
    sources: list[PlannedSource]


def find_sources(
    inputs: Sequence[Path],
    key: bytes,
    patient_regex: str | None,
    label_index: LabelIndex,
    find_dicom: DicomFinder,
    find_frames: FrameFinder | None = None,
) -> tuple[list[PlannedSource], list[Quarantined]]:
    """Find all sources below some inputs.

    Args:
        inputs: files, folders, or patterns with '*'.
        key: the site's key, see `identity.site_key`.
        patient_regex: finds the patient in a path, see `identity.patient_of`.
        label_index: labels of the sources. Its mask files are no sources; it is told all scans and pairs them.
        find_dicom: finds the DICOM among files of one folder.
        find_frames: finds the videos among them; None: images in a row are no videos.

    Returns:
        The sources, sorted by keyed hash, and the files that are none, with the reason.

    Raises:
        UserError: labels of a source contradict each other, or two inputs hold the same source. Their samples would
            collide, and a series may lie in parts in both.
    """
    none: list[Quarantined] = []
    files, others = list_files(inputs)
    label_index.claim(files, len(others))
    files = [(root, name) for root, name in regular_files(files, none) if not _is_mask(root, name, label_index)]
    sources: list[Source] = []
    if find_frames is not None:
        for root in sorted({root for root, _ in files}):
            videos, single = find_frames(root, [relative for each, relative in files if each == root])
            sources += videos
            files = [file for file in files if file[0] != root] + [(root, relative) for relative in single]
    sources += [file_source(root, relative) for root, relative in files]
    taken = {(source.root, name) for source in sources for name in source.files[1:]}  # a header's voxels
    if taken or label_index.claimed:
        others = others.kept(lambda root, name: (root, name) not in taken and not _is_mask(root, name, label_index))
    for root in others.roots():
        dicom, rest = find_dicom(root, others.below(root))
        sources += dicom
        none += [_as_labels(each, root, label_index) for each in rest]
    studies = studies_of([source.relative for source in sources if source.study is None])
    shared = shared_studies(studies)
    sources = _with_own_identities(sources)
    label_index.pair([source.relative for source in sources])
    mistakes, planned = Mistakes(" and ".join(str(each) for each in inputs)), []
    for source in sources:
        with mistakes.each():
            planned.append(_planned(source, key, patient_regex, label_index, studies, shared))
    planned.sort(key=lambda each: each.order)
    for one, following in pairwise(planned):
        if one.order == following.order:
            names = " and ".join(f"'{each.source.root / each.source.relative}'" for each in (one, following))
            mistakes.add(
                f"two inputs hold '{one.source.relative}' ({names}): give their common parent, or build two data sets"
            )
    mistakes.raise_if_any()
    return planned, none


def shown(relative: str) -> str:
    """A path for people and for JSON: file names are bytes, and those of old systems are often not UTF-8."""
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


def _as_labels(each: Quarantined, root: Path, label_index: LabelIndex) -> Quarantined:
    """What a file without DICOM in it is to this data set: few of them are meant to be DICOM."""
    if each.reason != "not DICOM":
        return each
    labels = label_index.listed and (root / each.path).resolve() in label_index.listed
    return each.model_copy(update={"reason": "labels of this data set, no scan" if labels else NO_FILE_OF_IT})


def _is_mask(root: Path, relative: str, label_index: LabelIndex) -> bool:
    return bool(label_index.claimed) and label_index.real.of(root, relative) in label_index.claimed


def regular_files(files: Iterable[File], none: list[Quarantined], kind: QuarantineKind = "skipped") -> list[File]:
    """The regular files among `files`.

    Args:
        files: (root, path below it).
        none: receives a line for each other file: a folder that cannot be listed, a link to nowhere, or a pipe, which a
            reader would wait for without end.
        kind: of the lines for what is neither file nor folder.
    """
    opened: list[File] = []
    for root, relative in files:
        try:
            mode = (root / relative).stat().st_mode
        except OSError as error:
            none.append(Quarantined(path=shown(relative), reason=f"cannot be opened: {error.strerror}"))
            continue
        if stat.S_ISREG(mode):
            opened.append((root, relative))
        elif stat.S_ISDIR(mode):
            none.append(Quarantined(path=shown(relative), reason="a folder that cannot be opened"))
        else:
            none.append(Quarantined(path=shown(relative), kind=kind, reason="no regular file"))
    return opened


def _with_own_identities(sources: Sequence[Source]) -> list[Source]:
    """Give the second of two sources of one identity a number, whatever damaged headers say."""
    seen = Counter[tuple[Path, str]]()
    apart: list[Source] = []
    for source in sorted(sources, key=lambda source: source.relative):
        number = seen[source.root, source.identity]
        seen[source.root, source.identity] += 1
        apart.append(replace(source, identity=f"{source.identity}\n{number}") if number else source)
    return apart


def _planned(
    source: Source,
    key: bytes,
    patient_regex: str | None,
    label_index: LabelIndex,
    studies: Mapping[str, str],
    shared: Mapping[str, str],
) -> PlannedSource:
    # The header knows better than the path, the user's pattern better than both.
    known = source.patient if patient_regex is None else None
    patient = known or patient_of(source.relative, patient_regex, shared.get(source.relative))
    # Of a path without a patient in it, the study's own name has to tell patients apart.
    whose = patient if known or patient_regex is not None else ""
    study = studies[source.relative] if source.study is None else source.study
    return PlannedSource(
        source,
        keyed_hash(key, "scan", source.identity),
        keyed_hash(key, "patient", patient),
        label_index.of(source.relative),
        keyed_hash(key, "study", f"{whose}\0{study}"),
    )


def shard_name(number: int) -> str:
    """The file name of a shard."""
    return f"shard-{number:06d}.tar"


def assign_shards(sources: Sequence[PlannedSource], shard_bytes: int, first: int = 0) -> list[ShardPlan]:
    """Assign sources to shards, in their order.

    Args:
        sources: sorted, as `find_sources` returns them.
        shard_bytes: about so many bytes of source files make up a shard; it holds `MAX_SOURCES` sources at most.
        first: number of the first shard.

    Returns:
        At least one plan; with no sources, one without any.
    """
    plans: list[ShardPlan] = []
    current: list[PlannedSource] = []
    size = 0
    for each in sources:
        if current and (size + each.source.size > shard_bytes or len(current) == MAX_SOURCES):
            plans.append(ShardPlan(shard_name(first + len(plans)), current))
            current, size = [], 0
        current.append(each)
        size += each.source.size
    plans.append(ShardPlan(shard_name(first + len(plans)), current))
    return plans
