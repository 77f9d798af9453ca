"""Masks of more than one file: of a case with numbered channels, and of the scans of a folder."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.pairing.candidates import (
    MaskFile,
    PairingState,
    Parts,
    PathIndex,
    plain,
    plain_folders,
)
from scanfoundry.datasets.labels.pairing.names import whole_parts_of
from scanfoundry.datasets.labels.pairing.numbered import channel_count, numbered
from scanfoundry.datasets.labels.pairing.study import is_contrast, studies_of
from scanfoundry.datasets.labels.pairing.vocabulary import is_bare, scans_named, tokens_of

_DIXON = frozenset(("water", "fat", "in", "out", "opp", "opposed", "phase", "inphase", "outphase"))


def by_case(work: PairingState) -> None:
    """Masks of 'x' of which there are 'x_0000' and more: channels, where the cases have the same ones. Files them under
    the first channel that is there; UserError where the numbers may as well count scans."""
    cases: dict[Parts, dict[int, int]] = defaultdict(dict)
    doubled: dict[Parts, int] = {}  # the second file of a number
    for number, scan in enumerate(work.scans):
        of_case = numbered(scan.names[0][-1]) if scan.single else None
        if of_case is not None:
            name = (*scan.names[0][:-1], of_case[0])
            doubled |= {name: number} if of_case[1] in cases[name] else {}
            cases[name][of_case[1]] = number
    found: dict[Parts, list[tuple[int, MaskFile]]] = defaultdict(list)
    for mask, name, behind in _masks_of_cases(work, cases):
        found[name].append((behind, mask))
    if not found:
        return
    # Cases without a mask show what the numbers mean where they have the same ones.
    same = [name for name in cases if name not in found and any(cases[name].keys() == cases[f].keys() for f in found)]
    if not channel_count({*cases[name]} for name in (*found, *same)):
        name, masks = next((each for each in found.items() if len(cases[each[0]]) > 1), next(iter(found.items())))
        scans = [work.shown(number) for _, number in sorted(cases[name].items())]
        work.doubt.channels(masks[0][1].path, scans[0], scans[-1])
    first = {name: cases[name][min(cases[name])] for name in found}
    for name in found:
        if name in doubled:
            raise UserError(f"two images of one name, '{work.shown(doubled[name])}' among them: take one out")
        if paired := next((number for number in cases[name].values() if number in work.found), None):
            work.doubt.scans(found[name][0][1].path, work.shown(first[name]), work.shown(paired))
    work.keep({first[name]: work.united(first[name], masks) for name, masks in found.items()})
    work.pairs.cases |= found.keys()
    work.first_of |= first


def _masks_of_cases(
    work: PairingState, cases: Mapping[Parts, Mapping[int, int]]
) -> Iterator[tuple[MaskFile, Parts, int]]:
    """(mask, case, number behind the mark or -1)."""
    names = list(cases)
    whole, bare = (
        PathIndex((name, i) for i, name in enumerate(names)),
        PathIndex((plain(name), i) for i, name in enumerate(names)),
    )
    for mask in work.pairs.left:
        for name, behind in ((mask.parts[-1], None), *scans_named(mask.parts[-1])):
            parts = (*mask.parts[:-1], name)
            fitting = [names[i] for i in whole.best(parts) or bare.best(plain(parts))]
            # Of img_mask_0001, img is no case where there is a scan img_0001.
            fitting = [case for case in fitting if behind is None or {*work.alike(mask)} <= {*cases[case].values()}]
            if len(fitting) > 1:
                one, other = (work.shown(min(cases[case].values())) for case in fitting[:2])
                work.doubt.scans(mask.path, one, other)
            if fitting:
                yield mask, fitting[0], -1 if behind is None else behind
                break


def by_folder(work: PairingState) -> None:
    """Masks that are called by a mark alone (seg): of the one scan of their folder, or of the contrasts of one study.

    Raises:
        UserError: the folder holds scans of which nothing says that they belong together.
    """
    masks: dict[Parts, MaskFile] = {}
    for mask in work.pairs.left:
        if is_bare(mask.parts[-1]):
            folder = whole_parts_of(mask.path.parent.as_posix() + "/x")[:-1]
            if folder in masks:
                work.doubt.masks("/".join(mask.parts[:-1]) or ".", masks[folder].path, mask.path)
            masks[folder] = mask
    held = _scans_of_folders(work, masks)
    found: dict[int, list[MaskFile]] = {}
    for folder, scans in held.items():
        mask = masks[folder]
        for scan in scans:
            if others := work.found.get(scan) or found.get(scan):
                work.doubt.masks(work.shown(scan), others[0].path, mask.path)
        if not _belong_together(work, scans):
            work.doubt.scans(mask.path, work.shown(scans[0]), work.shown(scans[1]))
        found |= {scan: [mask] for scan in scans}
    work.keep(found)


def _scans_of_folders(work: PairingState, masks: Mapping[Parts, MaskFile]) -> dict[Parts, list[int]]:
    """The scans that lie in the folder of each mask, or in a folder of images that is called as it."""
    folders: dict[Parts, list[int]] = defaultdict(list)
    for number, scan in enumerate(work.scans):
        folders[scan.folder].append(number)
    names = list(folders)
    whole = PathIndex((name, i) for i, name in enumerate(names))
    bare = PathIndex((plain_folders(name), i) for i, name in enumerate(names))
    held: dict[Parts, list[int]] = {}
    for folder, mask in masks.items():
        # The path of a mask is longer: that of the scans has to be its end.
        fitting = [i for i in whole.best(folder) if len(names[i]) <= len(folder)]
        if not fitting:
            near = plain_folders(folder)
            fitting = [i for i in bare.best(near) if len(plain_folders(names[i])) <= len(near)]
        if not fitting and not mask.parts[:-1] and work.doubt.root is not None and () in folders:
            fitting = [names.index(())] if mask.root.resolve() == work.doubt.root.resolve() else []
        if len(fitting) > 1:
            one, other = (work.shown(folders[names[i]][0]) for i in fitting[:2])
            work.doubt.scans(mask.path, one, other)
        if fitting:
            held[folder] = folders[names[fitting[0]]]
    return held


def _belong_together(work: PairingState, scans: Sequence[int]) -> bool:
    """Whether the scans of a folder are one scan, or by their names the contrasts of one study."""
    if len(scans) == 1 or not any(work.scans[scan].single for scan in scans):
        return True
    stems = [work.scans[scan].names[0][-1] for scan in scans]
    if len(set(stems)) < len(stems):
        return False
    if len(set(studies_of([work.shown(scan) for scan in scans]).values())) == 1:
        return True
    # Names that differ in words for contrasts alone; 'img' and 'img2', 'left' and 'right', 'pre' and 'post' do not.
    words = [tokens_of(stem.casefold()) for stem in stems]
    common = set(words[0]).intersection(*words[1:])
    return all(set(each) <= common | _DIXON or is_contrast(stem) for each, stem in zip(words, stems, strict=True))
