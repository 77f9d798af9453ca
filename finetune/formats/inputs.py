"""Scans to predict on, put together to cases of several channels by the names of their files."""

import re
import unicodedata
from collections.abc import Mapping, Sequence

from scanfoundry.datasets.labels.pairing.names import parts_of
from scanfoundry.datasets.labels.pairing.numbered import numbered
from scanfoundry.datasets.readers import ReadError, suffix_of
from scanfoundry.datasets.readers.nifti import header_of
from scanfoundry.finetune.cases.cases import ScanSource
from scanfoundry.finetune.cases.sources import FileScan

Images = tuple[ScanSource | None, ...]


def group_channels(
    scans: Mapping[str, ScanSource], channels: Sequence[str]
) -> tuple[dict[str, Images], dict[str, str]]:
    """The channels of each case.

    A file is of channel c where its name ends with nnU-Net's number (x_0001) or with the channel's name (x_flair), is
    that name (x/flair), or lies in a folder of that name (flair/x). A 4D NIfTI with as many volumes holds them all.
    With one channel each file is a case. Where two files are the same channel of a case, none of its files is taken;
    nor is one whose number says another channel than its name.

    Args:
        scans: by path below the input folder.
        channels: their names.

    Returns:
        The channels of each case by its name, None where one is missing; and why other files are of no case.
    """
    if len(channels) == 1:
        return {relative: (source,) for relative, source in scans.items()}, {}
    cases: dict[str, list[ScanSource | None]] = {}
    members: dict[str, list[str]] = {}
    strange, doubled = {}, dict[str, str]()
    for relative, source in scans.items():
        if volumes := _volumes(source, len(channels)):
            name = "/".join(parts_of(relative))
            found: list[tuple[str, int, ScanSource]] = [(name, number, part) for number, part in enumerate(volumes)]
        else:
            place, why = _place(relative, channels)
            found = [(*place, source)] if place is not None else []
        if not found:
            strange[relative] = why
        for name, number, part in found:
            name = unicodedata.normalize("NFC", name)  # as another file of the case may be called
            images = cases.setdefault(name, [None] * len(channels))
            if images[number] is not None:
                doubled[name] = f"case '{name}' has two files for channel '{channels[number]}'"
            images[number] = part
            members.setdefault(name, []).append(relative)
    for name, reason in doubled.items():
        del cases[name]
        strange |= dict.fromkeys(members[name], reason)
    return {name: tuple(images) for name, images in cases.items()}, strange


def _place(relative: str, channels: Sequence[str]) -> tuple[tuple[str, int] | None, str]:
    """(name of the case, number of the channel) of a file, or why it is of none."""
    *folders, stem = relative[: len(relative) - len(suffix_of(relative))].split("/")
    numbers: list[int] = []
    if (found := numbered(stem)) and found[1] < len(channels):
        stem, number = found
        numbers.append(number)
    by_name = _named(stem, folders, channels)
    if by_name is not None:
        *folders, stem = by_name[0]
        numbers.append(by_name[1])
    file = relative.rpartition("/")[2]
    if len(set(numbers)) > 1:
        by_number, by_name_too = channels[numbers[0]], channels[numbers[1]]
        return None, f"{file} is channel '{by_number}' by its number and '{by_name_too}' by its name: rename it"
    if not numbers:
        names = ", ".join(channels)
        return None, f"{file} is of none of the channels {names}: call it x_0000, x_0001 or x_NAME"
    return ("/".join((*folders, stem)), numbers[0]), ""


def _named(stem: str, folders: Sequence[str], channels: Sequence[str]) -> tuple[tuple[str, ...], int] | None:
    """(path of the case, number of the channel) by the channel's name; the longest that fits."""
    lower = [name.lower() for name in channels]
    for number in sorted(range(len(channels)), key=lambda n: -len(lower[n])):
        if stem.lower() == lower[number] and folders:
            return tuple(folders), number
        if re.search(rf"[-_. ]{re.escape(lower[number])}$", stem.lower()):
            return (*folders, stem[: -len(lower[number]) - 1]), number
        if lower[number] in (part.lower() for part in folders):
            return (*(part for part in folders if part.lower() != lower[number]), stem), number
    return None


def _volumes(source: ScanSource, count: int) -> list[FileScan]:
    """The volumes of a 4D NIfTI of that many."""
    if not isinstance(source, FileScan) or source.volume is not None or source.source.kind != "nifti":
        return []
    try:
        shape = header_of(source.source.paths[0]).get_data_shape()
    except (ReadError, OSError):
        return []  # its reader says what is wrong with it
    return [FileScan(source.source, number) for number in range(count)] if len(shape) == 4 and shape[3] == count else []
