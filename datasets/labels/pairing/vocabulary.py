"""What the words of a file name say: which is a mask, of what it is called after, and what is left without them."""

import re
from collections.abc import Iterator
from functools import lru_cache

_MARKS = "ground[ _-]?truths?|segmentations?|annotations?|masks?|labels?|msks?|lbls?|segs?|anno|gt"  # the longest first
_BETWEEN = r"[ ._-]*"
_BEHIND = re.compile(rf"(?i)(?P<scan>.+?){_BETWEEN}(?P<mark>{_MARKS})(?:[ ._-]?(?P<number>\d+))?")
_BEFORE = re.compile(rf"(?i)(?P<mark>{_MARKS}){_BETWEEN}(?P<scan>.+)")
_BARE = re.compile(rf"(?i)(?:{_MARKS})")

_TOKEN = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|\d+|[^\W\d_A-Za-z]+|[A-Z]")
_MARK_NAMES = (
    "groundtruth groundtruths segmentation segmentations annotation annotations mask masks label labels msk msks lbl "
    "lbls seg segs anno gt"
)
_IMAGE_NAMES = "image images img imgs imaging volume volumes vol vols scan scans pic pics picture pictures"
_MARK_WORDS, _IMAGE_WORDS = frozenset(_MARK_NAMES.split()), frozenset(_IMAGE_NAMES.split())
_SIDE_NAMES = "tr ts va train training test testing val valid validation trainval all"
_SIDES = frozenset(_SIDE_NAMES.split())
_GLUED = ("mask", "masks", "label", "labels", "segmentation", "annotation", "groundtruth")
WORDS = _MARK_WORDS | _IMAGE_WORDS


@lru_cache(maxsize=65536)
def tokens_of(name: str) -> tuple[str, ...]:
    """The words and numbers of a name, in lower case: 'Img_012-maskB' is (img, 012, mask, b)."""
    found = [token.casefold() for token in _TOKEN.findall(name)]
    joined: list[str] = []
    for token in found:
        if joined and joined[-1] == "ground" and token in ("truth", "truths"):
            joined[-1] = "groundtruth"
        else:
            joined.append(token)
    return tuple(joined)


def spans_of(name: str) -> list[tuple[int, int]]:
    """Where the words and numbers of a name begin and end."""
    return [match.span() for match in _TOKEN.finditer(name)]


def is_marked(stem: str) -> bool:
    """Whether a word for a mask is among those of a name, or one begins or ends with it: 'x_seg', 'gt-1', 'maskcase'.

    What is glued to a name has to be a whole word: 'seg' begins many.
    """
    tokens = tokens_of(stem)
    return any(token in _MARK_WORDS or token.startswith(_GLUED) or token.endswith(_GLUED) for token in tokens)


def is_bare(stem: str) -> bool:
    """Whether a name is nothing but a word for a mask: 'seg', not 'seg_1'."""
    return _BARE.fullmatch(stem) is not None


def rest_of(name: str) -> tuple[str, ...]:
    """The tokens of a name without words for masks and images: what 'img_1' and 'mask_1' share."""
    return tuple(token for token in tokens_of(name) if token not in WORDS)


@lru_cache(maxsize=65536)
def folder_kind(folder: str) -> str:
    """'mask' or 'image' where a folder is called after what it holds and no more ('labelsTr', 'train_images'), else ''.

    A patient's folder may be called 'label_01'.
    """
    tokens = set(tokens_of(folder))
    if not tokens <= WORDS | _SIDES:
        return ""
    if tokens & _MARK_WORDS:
        return "mask"
    return "image" if tokens & _IMAGE_WORDS else ""


@lru_cache(maxsize=65536)
def scans_named(stem: str) -> tuple[tuple[str, int | None], ...]:
    """Whole names of scans that the name of a mask may carry, with the number behind the mark.

    'x_mask' is of 'x', 'x_mask_1' too (number 1), 'gt_x' of 'x', 'x_seg_mask' of 'x_seg', else of 'x'.
    """
    found: dict[tuple[str, int | None], None] = {}
    queue = [(stem, None)]
    while queue and len(found) < 16:
        name, number = queue.pop(0)
        for scan, behind in _cut_once(name):
            one = (scan, behind if behind is not None else number)
            if one not in found:
                found[one] = None
                queue.append(one)  # type: ignore[arg-type]
    return tuple(found)


def _cut_once(name: str) -> Iterator[tuple[str, int | None]]:
    if match := _BEHIND.fullmatch(name):
        yield match["scan"], int(match["number"]) if match["number"] else None
    if match := _BEFORE.fullmatch(name):
        yield match["scan"], None
