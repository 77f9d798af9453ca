"""What there is to predict on: files and DICOM series under the inputs, and a name for the output of each."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import Quarantined
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.discovery.sources import File, regular_files, shown
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.datasets.labels.pairing.names import parts_of, stem_of
from scanfoundry.datasets.labels.pairing.numbered import numbered
from scanfoundry.datasets.readers import SUFFIXES, ReadError, Source, file_source, find_files, suffix_of
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.sources import FileScan
from scanfoundry.finetune.formats.inputs import group_channels


@dataclass(frozen=True)
class InputCase:
    """A source of one scan or more. name: of its outputs, relative to their folder and without suffix.

    A file's outputs are called like the file. A DICOM series' files and folders are often called after the patient:
    its outputs are called by a keyed hash, the same one as its scans have in shards and in a study.
    """

    source: Source
    name: str
    channels: tuple[ScanSource | None, ...] = ()  # of a model of several: each one's scan, None where it is missing

    @property
    def shown(self) -> str:
        """The path that its user knows it by."""
        return shown(self.source.relative)

    @property
    def is_dicom(self) -> bool:
        """Whether it can be referred to by a DICOM object."""
        return self.source.kind.startswith("dicom")

    @property
    def sources(self) -> list[Source]:
        """Of every channel."""
        return [each.source for each in self.channels if isinstance(each, FileScan)] or [self.source]


def find_items(inputs: Sequence[Path]) -> tuple[list[InputCase], list[Quarantined]]:
    """The scans' sources under `inputs` in the order of their names; and what cannot be one, with the reason.

    UserError where an input is missing, nothing can be read, or two inputs would have outputs of one name.
    """
    refused = [_no_file(path) for path in inputs if os.path.lexists(path) and not (path.is_file() or path.is_dir())]
    inputs = [path for path in inputs if path.is_file() or path.is_dir() or not os.path.lexists(path)]
    files, others = (regular_files(found, refused, "refused") for found in find_files(inputs))
    sources = _sources(files, refused)
    names = _names_of_files([source.relative for source in sources])
    items = [InputCase(source, name) for source, name in zip(sources, names, strict=True)]
    taken = {(source.root, name) for source in sources for name in source.files}  # a header's voxels
    for root in sorted({root for root, _ in others}):
        names = [relative for each, relative in others if each == root and (root, relative) not in taken]
        series, none = find_dicom(root, names, 1, lambda what, done, total: None)
        items += [InputCase(source, _name_of_series(source)) for source in series]
        refused += [line for line in none if line.kind != "skipped"]
    refused += _hollow(inputs, [item.source for item in items], [line.path for line in refused])
    if not items and not refused:
        known = ", ".join(SUFFIXES)
        raise UserError(f"no readable scan under {', '.join(map(str, inputs))}; read are DICOM and {known}")
    items.sort(key=lambda item: (item.name, item.shown))
    for one, other in pairwise(items):
        if one.name == other.name:
            raise UserError(
                f"the outputs of two inputs would be called '{one.name}': {one.shown} and {other.shown}; "
                "give them to separate calls"
            )
    return items, refused


def _no_file(path: Path) -> Quarantined:
    reason = "a link that leads to nothing" if path.is_symlink() else "no regular file"
    return Quarantined(path=shown(path.name), reason=reason)


def _sources(files: Sequence[File], refused: list[Quarantined]) -> list[Source]:
    sources = []
    for root, relative in files:
        try:
            sources.append(file_source(root, relative))
        except (ReadError, OSError) as error:
            reason = f"cannot be opened: {error.strerror}" if isinstance(error, OSError) else str(error)
            refused.append(Quarantined(path=shown(relative), reason=reason))
    return sources


def _hollow(inputs: Sequence[Path], sources: Sequence[Source], refused: Sequence[str]) -> list[Quarantined]:
    """A line for each folder that is called like a scan and holds none."""
    called = {
        (given, Path(folder, name).relative_to(given).as_posix())
        for given in inputs
        for folder, folders, _ in os.walk(given)
        for name in folders
        if suffix_of(name) in SUFFIXES
    }
    held = {(source.root, parent.as_posix()) for source in sources for parent in Path(source.relative).parents}
    told = {parent.as_posix() for path in refused for parent in Path(path).parents}
    names = [name for given, name in sorted(called - held) if name not in told]
    roots = {source.root for source in sources}
    names += [path.name for path in inputs if path.is_dir() and suffix_of(path.name) in SUFFIXES and path not in roots]
    return [Quarantined(path=shown(name), reason="a folder, and no scan in it") for name in names]


def cases_of(items: Sequence[InputCase], channels: Sequence[str]) -> tuple[list[InputCase], list[Quarantined]]:
    """Files put together to cases of several channels, by their names; and those of which that cannot be done, with
    the reason: of no channel, two of one, or of DICOM, whose series do not say which channel they are."""
    if len(channels) == 1:
        return list(items), []
    refused = [Quarantined(path=item.shown, reason=_no_dicom(channels)) for item in items if item.is_dicom]
    named = {item.shown: FileScan(item.source) for item in items if not item.is_dicom}
    found, strange = group_channels(named, channels)
    refused += [Quarantined(path=name, reason=reason) for name, reason in strange.items()]
    cases = []
    for name, images in found.items():
        first = next(image for image in images if image is not None)
        assert isinstance(first, FileScan)
        cases.append(InputCase(first.source, name, images))
    return cases, refused


def _no_dicom(channels: Sequence[str]) -> str:
    return (
        f"a model of the channels {', '.join(channels)} takes files called after them (x_0000, x_0001 or x_NAME); "
        "convert the series first, with --format nifti or dcm2niix"
    )


def _names_of_files(relatives: Sequence[str]) -> list[str]:
    """nnU-Net's `_0000` is left out, but where its number is one of several: then it may count scans."""
    numbers = [numbered("/".join((*PurePosixPath(r).parts[:-1], stem_of(PurePosixPath(r).name)))) for r in relatives]
    times = Counter(found[0] for found in numbers if found)
    names = []
    for relative, found in zip(relatives, numbers, strict=True):
        kept = parts_of(relative) if not found or times[found[0]] == 1 else (f"{found[0]}_{found[1]:04d}",)
        names.append("/".join(kept))
    return names


def _name_of_series(source: Source) -> str:
    return f"series-{keyed_hash(site_key(), 'scan', source.identity)[:12]}"
