"""Which columns of a list may travel with the scans: classes and numbers, nothing that could name a person."""

import math
import re
from collections.abc import Sequence

MAX_CLASSES = 64
MAX_TEXT = 64
_CLASS_NAMES = {"class", "label", "diagnosis", "category", "sex", "gender"}
_MISSING = {"", "na", "n/a", "nan", "null"}
_SPLITS = {"split", "fold", "subset"}
# Words of a column's name that tell a person, a place or a day.
_IDENTITY = {
    *("name", "surname", "birth", "birthday", "born", "dob", "date", "datum", "day", "time", "datetime", "timestamp"),
    *("id", "uid", "guid", "uuid", "pid", "mrn", "nhs", "ssn", "accession", "insurance", "record", "key", "hash"),
    *("address", "street", "city", "zip", "zipcode", "postcode", "plz", "phone", "telephone", "fax", "email", "mail"),
    *("hospital", "institution", "site", "centre", "center", "department", "physician", "doctor", "reader"),
    *("radiologist", "operator", "author", "annotator", "comment", "comments", "note", "notes", "report", "text"),
    *("path", "file", "folder", "url", "link", "source", "image", "study", "series", "vorname", "nachname"),
}
_IDENTITY_ENDS = ("name", "birth", "date", "datum", "uid", "mrn", "patientid", "subjectid", "studyid", "caseid")
_PERSON = {"patient", "patients", "subject", "case", "person"}
_WORDS = re.compile(r"[A-Z]?[a-zäöüß]+|[A-Z]+(?![a-z])|\d+")
_TELLING = re.compile(r"\d{6,}|\d{1,4}[-./]\d{1,2}[-./]\d{1,4}|@|[/\\]|\.(png|jpe?g|tiff?|dcm|nii|gz)$", re.IGNORECASE)


def value_of(text: str | None) -> str:
    """A cell without its margin; '' where it says that nothing is known."""
    cell = (text or "").strip()
    return "" if cell.lower() in _MISSING else cell


def kind_of(name: str, cells: Sequence[str]) -> tuple[str, str]:
    """('class' or 'target', '') for a column that may be taken, ('', why not) for one that is left out.

    `cells` are the values of all rows, as of `value_of`. Text is a class where its values recur (or the column is
    called so), numbers are a target unless the column is called class, label, diagnosis, category, sex or gender.
    """
    words = [word.lower() for word in _WORDS.findall(name)]
    known = [cell for cell in cells if cell]
    distinct = set(known)
    if _looks_like_identity(words):
        return "", "may tell a person, a place, a file or a day"
    if any(word in _SPLITS for word in words):
        return "", "tells how the data were split"
    if not known:
        return "", "is empty"
    classes = bool(_CLASS_NAMES.intersection(words))
    numbers = [_number(cell) for cell in distinct]
    if not classes and None not in numbers:
        if _like_records([number for number in numbers if number is not None], len(known)):
            return "", "looks like record numbers or days"
        return "target", ""
    if len(distinct) > MAX_CLASSES:
        return "", f"has {len(distinct)} different values; at most {MAX_CLASSES} are classes"
    if any(len(cell) > MAX_TEXT or _TELLING.search(cell) for cell in distinct):
        return "", "holds long text, days, paths or record numbers"
    if not classes and len(distinct) > max(1, len(known) // 2):
        return "", "has values that hardly recur"
    return "class", ""


def _looks_like_identity(words: list[str]) -> bool:
    if any(word in _IDENTITY or word.endswith(_IDENTITY_ENDS) for word in words):
        return True
    return bool(words) and _PERSON.issuperset(word for word in words if not word.isdigit())


def _number(cell: str) -> float | None:
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _like_records(numbers: list[float], rows: int) -> bool:
    if not all(number == int(number) and number >= 0 for number in numbers) or max(numbers) < 100_000:
        return False
    days = all(19000101 <= n <= 20991231 and 1 <= n // 100 % 100 <= 12 and 1 <= n % 100 <= 31 for n in numbers)
    return days or len(numbers) > rows // 2
