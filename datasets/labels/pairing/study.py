"""Which files without a DICOM header are of one study, by names that say so and never by mere neighbourhood.

Two patients taken for one study would be trained to look alike; a study that is not seen only costs a pair.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath

from scanfoundry.datasets.identity import BIDS_SUBJECT
from scanfoundry.datasets.labels.pairing.numbered import MOST_CHANNELS, numbered
from scanfoundry.datasets.readers import SUFFIXES, suffix_of

_SESSION = re.compile(r"(?:^|(?<=[/_]))ses-[A-Za-z0-9]+(?=[/_.]|$)")
# Contrasts and modalities as file names have them, BraTS, PI-CAI, ISLES and AutoPET among them.
_WORDS = (
    "t1 t1w t1c t1ce t1cd t1gd t1post t1n t1wce t1km t2 t2w t2f t2star flair t2flair pd pdw dwi adc swi tof mra hbv "
    "mr mri ct cta ctp ncct cect cbct ctres pet pt suv cbf cbv mtt tmax"
)
_CONTRASTS = frozenset(_WORDS.split())


def studies_of(files: Iterable[str]) -> dict[str, str]:
    """The study of each file.

    BIDS: one subject and session. nnU-Net: the channels x_0000, x_0001, ... of a case, where all cases of the folder
    have the same channels. Else names that end with a contrast ('x_t1', 'x_flair') share what stands before it, and
    names that are nothing but a contrast ('t1', 'flair') their folder. Anything else is a study of its own.

    Args:
        files: paths, '/' between their parts.

    Returns:
        By path, a text that files of one study share.
    """
    studies: dict[str, str] = {}
    folders: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for file in files:
        subject = BIDS_SUBJECT.search(file)
        if subject is not None:
            session = _SESSION.search(file)
            # Two data sets below one input may both have a 'sub-01'.
            studies[file] = f"{file[: subject.end()]}/{session[0] if session else ''}"
        else:
            folders[PurePosixPath(file).parent.as_posix()].append((file, _stem(file)))
    for folder, members in folders.items():
        channels = _channels([stem for _, stem in members])
        for file, stem in members:
            studies[file] = f"{folder}/{channels.get(stem) or _case(stem)}"
    return studies


def shared_studies(studies: Mapping[str, str]) -> dict[str, str]:
    """The studies that at least two files share, by file."""
    sizes = Counter(studies.values())
    return {file: study for file, study in studies.items() if sizes[study] > 1}


def is_contrast(stem: str) -> bool:
    """Whether a name is nothing but a contrast or modality: 't1', 'ct_pet'."""
    return not _case(stem)


def _stem(file: str) -> str:
    name, suffix = PurePosixPath(file).name, suffix_of(file)
    return name[: len(name) - len(suffix)] if suffix in SUFFIXES else name


def _case(stem: str) -> str:
    """A name without the contrasts at its end; '' where it is nothing else."""
    while stem:
        rest, _, last = re.sub(r"[-. ]", "_", stem).rpartition("_")
        if last.casefold() not in _CONTRASTS:
            return stem
        stem = stem[: len(rest)]
    return stem


def _channels(stems: list[str]) -> dict[str, str]:
    """The cases of nnU-Net's channels, by name; none where the numbers may as well count patients."""
    cases: dict[str, set[int]] = defaultdict(set)
    case_of: dict[str, str] = {}
    for stem in stems:
        if found := numbered(stem):
            case_of[stem] = found[0]
            cases[found[0]].add(found[1])
    count = max(map(len, cases.values()), default=0)
    alike = all(numbers == set(range(count)) for numbers in cases.values())
    return case_of if len(cases) > 1 and 1 < count <= MOST_CHANNELS and alike else {}
