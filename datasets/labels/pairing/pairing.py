"""Which mask is of which scan.

In this order: the same name; a name that carries the scan's whole name and a mark (x_mask, gt_x, x_mask_1); the name of
a case whose channels are numbered (x for x_0000); a mark alone (seg), of the scans of its folder; and last a guess, in
which common words are taken out of both names (img_1, mask_1), where it pairs the whole data set one to one.
What has two readings is a UserError.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from scanfoundry.datasets.labels.pairing.candidates import MaskFile, PairingState, Pairs, PathIndex, ScanNames, plain
from scanfoundry.datasets.labels.pairing.doubt import Doubt
from scanfoundry.datasets.labels.pairing.grouped import by_case, by_folder
from scanfoundry.datasets.labels.pairing.names import Parts
from scanfoundry.datasets.labels.pairing.vocabulary import is_bare, is_marked, rest_of, scans_named

Hits = dict[int, list[tuple[int, MaskFile]]]


def pair(scans: Iterable[str], masks: Sequence[MaskFile], doubt: Doubt, whole: bool = True) -> Pairs:
    """The masks of the scans (paths below their inputs). Without `whole`, `scans` are some of more: nothing is guessed.

    UserError, naming two candidates and what decides, where the names have two readings.
    """
    work = PairingState([ScanNames.of(relative) for relative in scans], masks, doubt)
    for level in (_exact, _exact_but_for_folders, _carried, by_case, by_folder):
        if work.pairs.left:
            level(work)
    if whole and work.pairs.left:
        _guessed(work)
        _stray(work)
    return work.pairs


def _exact(work: PairingState, shape: Callable[[Parts], Parts] = tuple) -> None:
    """Masks that are called as their scan."""
    left = work.pairs.left
    masks = PathIndex((shape(mask.parts), number) for number, mask in enumerate(left))
    found: dict[int, list[MaskFile]] = {}
    owners: dict[int, int] = {}
    for number, scan in enumerate(work.scans):
        if number in work.found:
            continue
        fitting = next(filter(None, (masks.best(shape(name)) for name in scan.names)), [])
        if len(fitting) > 1:
            work.doubt.masks(scan.relative, left[fitting[0]].path, left[fitting[1]].path)
        for mask in fitting:
            if scan.single and owners.get(mask, number) != number:
                work.doubt.scans(left[mask].path, work.shown(owners[mask]), scan.relative)
            owners[mask] = number
            found[number] = [left[mask]]
    work.keep(found)


def _exact_but_for_folders(work: PairingState) -> None:
    _exact(work, plain)


def _carried(work: PairingState) -> None:
    """Masks whose name carries the scan's whole name."""
    hits: Hits = defaultdict(list)
    for mask in work.pairs.left:
        for name, behind in scans_named(mask.parts[-1]):
            scans = work.called((*mask.parts[:-1], name))
            if not scans:
                continue
            if len(scans) > 1 and any(work.scans[number].single for number in scans):
                work.doubt.scans(mask.path, work.shown(scans[0]), work.shown(scans[1]))
            other = next((number for number in work.alike(mask) if number not in scans), None)
            if behind is not None and other is not None:  # x_mask_1: the second of x, or that of x_1?
                work.doubt.scans(mask.path, work.shown(scans[0]), work.shown(other))
            for scan in scans:
                hits[scan].append((-1 if behind is None else behind, mask))
            break
    work.keep({scan: work.united(scan, masks) for scan, masks in hits.items()})


def _guessed(work: PairingState) -> None:
    """The masks that are left, where the rest of their names pairs all of the data set."""
    found: dict[int, list[MaskFile]] = {}
    lonely = None
    for mask in work.pairs.left:
        scans = work.alike(mask)
        if len(scans) > 1:
            work.doubt.scans(mask.path, work.shown(scans[0]), work.shown(scans[1]))
        if not scans:
            lonely = mask
        elif scans[0] in found or scans[0] in work.found:
            (other, *_) = found.get(scans[0]) or work.found[scans[0]]
            work.doubt.masks(work.shown(scans[0]), other.path, mask.path)
        else:
            found[scans[0]] = [mask]
    if not found:
        return
    scan, (mask,) = next(iter(found.items()))
    if lonely is not None:
        work.doubt.incomplete(mask.path, work.shown(scan), f"'{lonely.path}' is of none")
    without = next((n for n in range(len(work.scans)) if n not in found and n not in work.found), None)
    if without is not None:
        work.doubt.incomplete(mask.path, work.shown(scan), f"'{work.shown(without)}' has none")
    work.keep(found)


def _stray(work: PairingState) -> None:
    """UserError for a mask that is left, but begins with a scan's whole name, or names nothing: it would be missing."""
    names = {scan.names[0][-1] for number, scan in enumerate(work.scans) if number in work.found}
    numbers_only = any(not _names_something(name) for name in names)  # 1.png or gt_1.png is a scan
    bare = {mask.path.parent: scan for scan, (mask, *_) in work.found.items() if is_bare(mask.parts[-1])}
    for mask in work.pairs.left:
        *folders, stem = mask.parts
        if is_marked(stem) and (scan := bare.get(mask.path.parent)) is not None:
            work.doubt.masks(work.shown(scan), work.found[scan][0].path, mask.path)
        within = [(*folders, name) for name in _within(stem)]
        for scan in (scan for name in within for scan in work.called(name) or work.of_case(name)):
            if scan in work.found:
                work.doubt.masks(work.shown(scan), work.found[scan][0].path, mask.path)
            work.doubt.incomplete(mask.path, work.shown(scan), "its name says more")
        if is_marked(stem) and not _names_something(stem) and not numbers_only and work.found:
            scan = next(iter(work.found))
            work.doubt.incomplete(mask.path, work.shown(scan), "its name does not say so")


def _within(stem: str) -> Iterator[str]:
    """Names of scans that the name of a mask holds beside other words: of 'x_mask_left', 'x' is one."""
    for match in re.finditer(r"(?<=[^\W_])[\W_]+|(?<=\d)(?=[^\W\d_])|(?<=[^\W\d_])(?=\d)", stem):
        before = stem[: match.start()]
        yield from (before, *(name for name, _ in scans_named(before)))
        behind = stem[match.end() :]
        if is_marked(stem):
            yield from (name for name, _ in scans_named(behind) if _names_something(name))


def _names_something(stem: str) -> bool:
    return any(not token.isdigit() for token in rest_of(stem))
