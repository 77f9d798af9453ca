"""Classes as people write them: '1' beside '1.0', 'benign' beside 'Benign'."""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

import yaml

_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_WHOLE = re.compile(r"-?(?:0|[1-9]\d*)(?:\.0*)?")  # ways to write one number that leave no doubt; '01' may be a code
MOST_SHOWN = 20


def number_of(text: str) -> float | None:
    """A plain decimal number; None for anything else ('1_000', 'inf', '61,5')."""
    return float(text) if _NUMBER.fullmatch(text) and len(text) < 300 else None


def alike(text: str) -> str | float:
    """Equal for texts that may well be one class: equal numbers, or words that differ in case, spaces, '_' and '-'."""
    number = number_of(text)
    if number is not None:
        return number
    return re.sub(r"[\s_-]+", " ", unicodedata.normalize("NFKC", text)).strip().casefold() or text


def one_spelling(counts: Counter[str]) -> tuple[dict[str, str], list[list[str]]]:
    """The class that each text is, and groups of texts of which nobody says whether they are one class.

    '1' and '1.0' are one number and one class, called by the shorter; other texts that are `alike` are asked about.
    """
    groups: dict[str | float, list[str]] = defaultdict(list)
    for text in sorted(counts):
        groups[alike(text)].append(text)
    spelled, doubtful = {text: text for text in counts}, []
    for group in groups.values():
        if len(group) > 1 and all(_WHOLE.fullmatch(text) for text in group):
            spelled |= dict.fromkeys(group, min(group, key=len))
        elif len(group) > 1:
            doubtful.append(group)
    return spelled, doubtful


def among(text: str, classes: Sequence[str]) -> str | None:
    """Which of `classes` a text is: itself, else the only one that is `alike`."""
    if text in classes:
        return text
    near = [each for each in classes if alike(each) == alike(text)]
    return near[0] if len(near) == 1 else None


def as_option(classes: Sequence[str]) -> str:
    """`classes` as they are typed behind `task.classes=`."""
    return f"[{', '.join(map(_quoted, classes))}]" if len(classes) <= MOST_SHOWN else "[...]"


def _quoted(text: str) -> str:
    """`text` as YAML reads it back: whole numbers may stand as they are, 'no', '01' and '1.0' may not."""
    plain = re.fullmatch(r"[\w.+-][\w .+-]*", text) is not None
    read = yaml.safe_load(text) if plain else None
    bare = isinstance(read, str | int) and not isinstance(read, bool) and str(read) == text
    return text if bare else json.dumps(text, ensure_ascii=False)
