"""Which columns of a list may travel with the scans: those that are asked for, and those called as labels are."""

import re
from collections.abc import Sequence

from scanfoundry.datasets.labels.tables.personal import number, telling_name, telling_value, telling_values

MAX_CLASSES = 64
_NO_CLASS = 10_000  # a number that nobody gives to a class
# A column of one of these names is what the scans are labelled with, in whatever list; no other one travels by itself.
_AGREED = (
    "class classes classname classlabel classid label labels labelname labelid imagelabel target targets category "
    "categories categoryname diagnosis diagnoses dx groundtruth gt y klasse diagnose classe diagnostic"
)
AGREED = frozenset(_AGREED.split())
_CLASS_NAMES = {"class", "label", "diagnosis", "category", "sex", "gender"}
_MISSING = {"", "na", "n/a", "nan", "null"}
_WORDS = re.compile(r"[A-Z]?[a-zäöüß]+|[A-Z]+(?![a-z])|\d+")
INSIST = "add --allow-identifying to store it all the same"


def value_of(text: str | None) -> str:
    """A cell without its margin; '' where it says that nothing is known."""
    cell = (text or "").strip()
    return "" if cell.lower() in _MISSING else cell


def agreed(name: str) -> bool:
    """Whether a column is called as what scans are labelled with: 'class', 'Label', 'ground_truth'."""
    return re.sub(r"[\W_]", "", name.casefold()) in AGREED


def kind_of(name: str, cells: Sequence[str]) -> str:
    """'class', 'target' (a number), or '' for a column without any value.

    `cells` are the values of all rows, as of `value_of`. Numbers are a target unless the column is called class, label,
    diagnosis, category, sex or gender.
    """
    known = {cell for cell in cells if cell}
    if not known:
        return ""
    classes = agreed(name) and not name.strip().casefold().startswith("target")
    classes = classes or bool(_CLASS_NAMES.intersection(word.lower() for word in _WORDS.findall(name)))
    return "class" if classes or any(number(cell) is None for cell in known) else "target"


def why_not(name: str, cells: Sequence[str], kind: str) -> str:
    """Why a column of this `kind` should not travel, with what is in it or how it is called; '' where it may."""
    known = [cell for cell in cells if cell]
    distinct = sorted(set(known))
    if telling_name(name) and not agreed(name):
        return "is called as one that tells a person, a place or a day"
    found = telling_values(known)
    if kind == "class":
        found = found or next((what for cell in distinct if (what := telling_value(cell))), "")
        if not found and any((each := number(cell)) is not None and each >= _NO_CLASS for cell in distinct):
            found = "record numbers or postcodes"
    if found:
        return f"looks as if it held {found}"
    if kind == "class" and len(distinct) > MAX_CLASSES:
        return f"has {len(distinct)} different values; at most {MAX_CLASSES} are classes"
    return ""
