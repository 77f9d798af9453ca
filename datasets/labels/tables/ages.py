"""Ages above 89 are stored as 90, as de-identification rules ask: so few people are that old that an age names them."""

import re
from collections.abc import Sequence

from scanfoundry.datasets.labels.tables.personal import words_of

OLDEST = 90.0  # what every age of 90 years and more becomes
_YEAR = {"year": 1.0, "month": 12.0, "week": 52.1775, "day": 365.2425}  # units in a year
_AGES = "age ages alter lebensalter patientenalter âge edad età idade leeftijd alder ålder patientage"
_AGE = frozenset(_AGES.split())
_JOINED = re.compile(r"(patients?|subjects?|person)age|age(at|in|of)\w*|ageyears?|patalter")
_OTHERS = "bone gestational gestation fetal foetal skeletal knochen lesion implant scar"
_NO_PERSON = frozenset(_OTHERS.split())
_UNITS = (
    ("month", r"mo(nths?)?|monate?n?|mois|m"),
    ("week", r"w(eeks?|ochen?)?|semaines?|wk"),
    ("day", r"d(ays?)?|tage?n?|jours?"),
    ("year", r"y(ears?|rs?|o)?|jahre?n?|ans?|j|a"),
)
_TOLD = re.compile(r"\D{0,3}?(?P<low>\d{1,5}(?:[.,]\d+)?)\s*(?P<rest>.*)")


def is_age(column: str) -> bool:
    """Whether a column of a list is called as the age of a person."""
    words = words_of(column)
    if _NO_PERSON.intersection(words):
        return False
    return bool(_AGE.intersection(words)) or _JOINED.fullmatch("".join(words)) is not None


def are_ages(cells: Sequence[str]) -> bool:
    """Whether all of a column's values are written as DICOM writes ages ('095Y', '11M'), whatever it is called."""
    return all(re.fullmatch(r"\d{2,4}[YMWD]", cell) for cell in cells)


def oldest_of(column: str, highest: float) -> float:
    """90 years in the unit of a column of ages: as its name says, else as its `highest` number can only mean.

    Nobody is 130 years old: higher numbers are months, and those above 1560 days.
    """
    words = set(words_of(column))
    for unit, pattern in _UNITS:
        if any(len(word) > 1 and re.fullmatch(pattern, word) for word in words):
            return OLDEST * _YEAR[unit]
    unit = "year" if highest <= 130 else "month" if highest <= 1560 else "day"
    return OLDEST * _YEAR[unit]


def capped_text(cell: str) -> str:
    """An age, or a range of ages, as a class: '90+' where it begins above 89 years ('92', '092Y', '1100M', '90-99')."""
    found = _TOLD.fullmatch(cell.strip())
    if found is None:
        return cell
    value, rest = float(found["low"].replace(",", ".")), found["rest"].lower().strip(" .")
    years = value / next((_YEAR[unit] for unit, pattern in _UNITS if re.fullmatch(pattern, rest)), 1.0)
    return "90+" if years >= (OLDEST - 1 if cell.strip().startswith(">") else OLDEST) else cell
