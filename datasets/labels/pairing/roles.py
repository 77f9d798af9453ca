"""Which files below a folder of masks are masks, where scans may lie there too."""

from collections import defaultdict
from collections.abc import Sequence

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.pairing.names import ByName, Parts, whole_parts_of
from scanfoundry.datasets.labels.pairing.vocabulary import folder_kind, is_marked, scans_named


def masks_among(files: Sequence[str], scans: Sequence[str], shared: bool) -> list[str]:
    """The masks among `files`, paths below the folder of masks; `scans`: paths of files that are surely none.

    shared: the folder is that of the scans too

    Of a folder of its own all are masks, but for copies of the scans beside masks that are called after them. Where
    scans lie in it, a mask is what lies in a folder of masks, carries a scan's whole name, or has a word for a mask
    among its own.

    Raises:
        UserError: a name says both that a file is a mask and that it is a scan.
    """
    parts = {file: whole_parts_of(file) for file in files}
    known = ByName[None]()
    for scan in scans:
        known.add(scan, None)
    if scans and all(known.knows(file) for file in files):
        return list(files)
    children, parents = _families(parts)
    if children and children | parents == set(files) and not children & parents:
        return [file for file in files if file in children]
    if scans and all(known.get(file) or _carries(parts[file], known) for file in files):
        return list(files)
    if not shared or (scans and 2 * sum(known.knows(file) for file in files) >= len(files)):
        return list(files)
    return _marked(files, parts, children, parents) or list(files)


def _carries(parts: Parts, known: ByName[None]) -> bool:
    return any(known.knows("/".join((*parts[:-1], f"{name}.png"))) for name, _ in scans_named(parts[-1]))


def _families(parts: dict[str, Parts]) -> tuple[set[str], set[str]]:
    """Files that carry the whole name of another one in their folder, and those whose name they carry."""
    named: dict[Parts, list[str]] = defaultdict(list)
    for file, each in parts.items():
        named[each].append(file)
    children, parents = set(), set()
    for file, (*folders, stem) in parts.items():
        of = next((found for name, _ in scans_named(stem) if (found := named.get((*folders, name)))), None)
        if of:
            children.add(file)
            parents.update(of)
    return children, parents


def _marked(files: Sequence[str], parts: dict[str, Parts], children: set[str], parents: set[str]) -> list[str]:
    by_folder = any(folder_kind(folder) == "mask" for each in parts.values() for folder in each[:-1])
    masks = []
    for file in files:
        kinds = [kind for folder in parts[file][:-1] if (kind := folder_kind(folder))] if by_folder else []
        if kinds:
            if kinds[-1] == "mask":
                masks.append(file)
        elif by_folder and (folder := next((each for each in parts[file][:-1] if is_marked(each)), None)):
            raise UserError(
                f"'{file}' may be a mask, as its folder '{folder}' says, or a scan: call it 'masks' or 'images', or "
                "give images and masks as patterns with '*'"
            )
        elif file in children and file in parents:
            raise UserError(f"'{file}' is called as the mask of one file and as the scan of another: rename it")
        elif file in children or (is_marked(parts[file][-1]) and file not in parents):
            masks.append(file)
    marked_scans = [file for file in parents if is_marked(parts[file][-1]) and file not in children]
    strays = [file for file in masks if file not in children] if marked_scans and not by_folder else []
    if strays:
        raise UserError(
            f"'{strays[0]}' may be a mask, or a scan as '{marked_scans[0]}' is: keep scans and masks in folders of "
            "their own, or call each mask as its scan with '_mask' behind"
        )
    scans: dict[Parts, str] = {}
    for file in sorted(set(files) - set(masks)) if masks else ():
        if (other := scans.setdefault(parts[file], file)) != file:
            raise UserError(
                f"'{other}' and '{file}' have one name in a folder of scans and masks: one may be the mask of the "
                "other; move the masks into a folder of their own"
            )
    return masks
