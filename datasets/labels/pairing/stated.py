"""Patterns to type that pair the scans and masks of a data set: tried on its files, so that they work as shown."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from itertools import product
from pathlib import PurePosixPath

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.pairing.names import stem_of
from scanfoundry.datasets.labels.pairing.vocabulary import WORDS, spans_of
from scanfoundry.datasets.readers.paths import cases_of

_DIGITS = re.compile(r"\d+")
_MOST = 2000  # scans among which that of a mask is looked for
_RUNS = 3  # common texts of two names that are tried

Pair = tuple[str, str]


def patterns_of(scans: Sequence[str], masks: Sequence[str], one: Pair, shared: bool) -> Pair | None:
    """Patterns of images and masks (both below their folders) with '*' for what both share, the ones that pair most.

    one: a scan, and a mask that may be its. shared: both lie below one folder. None where no pattern pairs any.
    """
    common = {scan: _in_common(scan, one[1]) for scan in scans[:_MOST]} or {one[0]: (0, 0)}
    near = [max(common, key=common.__getitem__), max(common, key=lambda scan: common[scan][::-1])]
    tried = {
        pair: _paired(pair, scans, masks, shared) for scan in (one[0], *near) for pair in _candidates(scan, one[1])
    }
    best = max(tried, key=lambda pair: (tried[pair], -sum(each.count("*") for each in pair)), default=None)
    return best if best is not None and tried[best] >= min(2, len(masks)) else None


def _paired(pair: Pair, scans: Sequence[str], masks: Sequence[str], shared: bool) -> int:
    """How many cases have both, less the masks without a scan."""
    try:
        images, labels = cases_of(pair[0], scans), cases_of(pair[1], masks)
    except UserError:  # two of one case
        return 0
    if shared and not {*images.values()}.isdisjoint(labels.values()):
        images = {case: image for case, image in images.items() if image not in {*labels.values()}}
    paired = len(images.keys() & labels.keys())
    return paired - (len(labels) - paired)


def _in_common(scan: str, mask: str) -> tuple[int, int]:
    if scan == mask:
        return (0, 0)
    folders = len({*PurePosixPath(scan).parts[:-1]} & {*PurePosixPath(mask).parts[:-1]})
    return max((len(run) for run in _runs(scan, mask)), default=0), folders


def _candidates(scan: str, mask: str) -> Iterator[Pair]:
    (*inside, image), (*within, label) = PurePosixPath(scan).parts, PurePosixPath(mask).parts
    both = [folder for folder in inside if folder in within]
    for run, starred in product(("", *_runs(scan, mask)), ([], both[-1:], both)):
        names = [_with_star(name, run) for name in (image, label)]
        folders = [["*" if part in starred else _with_star(part, run) for part in each] for each in (inside, within)]
        found = ["/".join((*each, name)) for each, name in zip(folders, names, strict=True)]
        # 'p1/*' and 'p8/*' would be those of two cases.
        plain = [_DIGITS.sub("0", each) for each in found]
        if all("*" in each for each in found) and (plain[0] != plain[1] or found[0] == found[1]):
            yield found[0], found[1]


def _with_star(name: str, run: str) -> str:
    """The last place of `run`: a word before it may hold it, too."""
    before, there, behind = name.rpartition(run) if run else (name, "", "")
    return f"{before}*{behind}" if there else name


def _runs(scan: str, mask: str) -> list[str]:
    """Texts of whole words and numbers that the names of both files share, the longest first; none of a mark alone."""
    one, other = (stem_of(PurePosixPath(each).name) for each in (scan, mask))
    first, second = spans_of(one), spans_of(other)
    blocks = SequenceMatcher(None, [one[a:b] for a, b in first], [other[a:b] for a, b in second], autojunk=False)
    runs = set()
    for at, beside, size in blocks.get_matching_blocks():
        if size and any(one[a:b].casefold() not in WORDS for a, b in first[at : at + size]):
            text = one[first[at][0] : first[at + size - 1][1]]
            if text == other[second[beside][0] : second[beside + size - 1][1]]:
                runs.add(text)
    return sorted(runs, key=lambda run: (-len(run), run))[:_RUNS]
