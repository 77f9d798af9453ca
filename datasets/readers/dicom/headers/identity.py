"""Who a header says the scan is of, and every string of it that could tell who, where or when."""

import re
from pathlib import Path

import pydicom
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.values import suppress_warnings
from scanfoundry.datasets.readers.dicom.headers.vocabularies import BODY_PARTS, vendor_of

_DUMMY_WORDS = (
    "anon anonymous anonymised anonymized anonym anonymize deidentified deid unknown unnamed none null nil na test "
    "testpatient patient patientid id noid removed redacted deleted dummy phantom default xxx private hidden"
)
_DUMMIES = frozenset(_DUMMY_WORDS.split())


def patient_of(file: FileHeader) -> str | None:
    """PatientID; the study's UID where that says nothing; None where neither is known.

    The issuer is left aside: it is missing from some of a hospital's files, and one patient taken for two is a leak
    between training and test, while two taken for one is harmless.
    """
    return file.patient if not is_dummy(file.patient) else file.study or None


def is_dummy(patient: str) -> bool:
    """Whether an ID was put in for all patients alike: 'ANONYMOUS', '0', '***', 'XXXX', '123456'."""
    plain = re.sub(r"[\W_]", "", patient.casefold())
    repeated = len(set(plain)) <= 1 and (len(plain) >= 4 or not plain.strip("0x"))
    counted = len(plain) >= 4 and "1234567890".startswith(plain)
    return repeated or counted or plain in _DUMMIES


SHORTEST = 4
_VRS = frozenset(("PN", "UI", "DA", "DT", "AE"))
_KEYWORDS = re.compile(
    r"(ID|IDs|Identifier|AccessionNumber|SerialNumber|UID|Institution\w*|StationName|Physician\w*|Operators?\w*|"
    r"\w*Address\w*|\w*Telephone\w*|PatientComments|ImageComments|Occupation|\w*Location|\w*Department\w*|"
    r"PatientMotherBirthName|\w*Insurance\w*|\w*Date|\w*DateTime|IssuerOf\w*|RequestingService|\w*Physicians?\w*)$"
)
_TECHNICAL = re.compile(r"Slice\w*")
_PLAIN_WORDS = (
    "none null unknown anonymous anonymized anonymised anon test patient name image scan series study scanner phantom "
    "default original primary derived secondary axial head first last removed hospital department clinic center "
    "centre university medical radiology healthcare imaging health memorial text enter room building street drive road "
    "avenue here operator field body true false"
)
_PLAIN = frozenset(_PLAIN_WORDS.split())
_WELL_KNOWN = "1.2.840.10008."  # UIDs of the standard itself


def identifying_strings(path: Path) -> set[str]:
    """Names (and their parts), IDs, dates, UIDs, institutions, addresses and serial numbers in the header of `path`.

    At least four characters long; words that stand in anybody's header are left out. Empty for what is no DICOM.
    """
    try:
        with suppress_warnings():
            return identifying_strings_of(pydicom.dcmread(path, stop_before_pixels=True, force=True))
    except Exception:  # a header that cannot be parsed says nothing
        return set()


def identifying_strings_of(header: Dataset) -> set[str]:
    """As `identifying_strings`, of a parsed header."""
    found: set[str] = set()
    for dataset in (header, getattr(header, "file_meta", None)):
        if dataset is not None:
            _walk(dataset, found)
    return {one for one in found if len(re.sub(r"[\W_]", "", one)) >= SHORTEST and not _is_plain(one)}


def short_names(header: Dataset) -> set[str]:
    """Parts of two and three letters of the names in a parsed header: 'Li', 'Ng', 'Wu', 'Doe'.

    They are too short to be looked for inside of words; as a whole word each is a name.
    """
    found: set[str] = set()
    _walk(header, found, names_only=True)
    parts = {part.strip(".'’-") for each in found for part in re.split(r"[\^=\s,;.]+", each)}
    return {part for part in parts if 2 <= len(part) < SHORTEST and part.isalpha()}


def _walk(dataset: Dataset, found: set[str], names_only: bool = False) -> None:
    for tag in list(dataset.keys()):
        try:
            element = dataset[tag]
        except Exception:  # one damaged element does not hide the others
            continue
        if element.VR == "SQ":
            for item in element.value or ():
                _walk(item, found, names_only)
        elif names_only and element.VR != "PN":
            continue
        elif element.VR in _VRS or (_KEYWORDS.search(element.keyword) and not _TECHNICAL.match(element.keyword)):
            _collect(element, found)


def _collect(element: DataElement, found: set[str]) -> None:
    if element.value is None or isinstance(element.value, bytes):
        return
    several = element.value if element.VM > 1 else [element.value]
    for value in several:
        text = str(value).strip()
        if text.startswith(_WELL_KNOWN):
            continue
        found.add(text)
        if element.VR == "PN" or "Institution" in element.keyword or "Address" in element.keyword:
            found.update(part for part in re.split(r"[\^=\s,;]+", text) if not part.isdigit())


def _is_plain(text: str) -> bool:
    return text.casefold() in _PLAIN or text.upper() in BODY_PARTS or (vendor_of(text) != "" and " " not in text)
