"""What in a column of a list may tell who, where or when: its name, and its values."""

import math
import re
import unicodedata
from collections.abc import Sequence

from scanfoundry.datasets.labels.tables.people import are_persons, speaks_of_person

MAX_TEXT = 64
FEW = 8  # values; fewer say nothing about whether they recur
_NAMES = (
    # of a person, in the languages that hospitals' lists are kept in
    "name names surname firstname lastname forename givenname familyname maidenname middlename initials nickname "
    "vorname nachname familienname geburtsname rufname zuname initialen nom prenom prénom patronyme nombre apellido "
    "apellidos nome cognome sobrenome voornaam achternaam guardian mother father mutter vater spouse "
    # birth and other days
    "birth birthday birthdate birthyear born dob yob date dates datum datetime timestamp geburt geburtstag "
    "geburtsdatum geburtsjahr geburtsort gebdat gebdatum geb jahrgang naissance né nacimiento nascita geboortedatum "
    "admission admitted discharge aufnahme aufnahmedatum entlassung entlassdatum untersuchungsdatum todestag "
    # numbers and registers
    "mrn nhs ssn pid uid guid uuid accession insurance insurer record kis fallnummer patientennummer patientennr "
    "patnr pnr versicherung versichertennummer krankenkasse kvnr svnr ahv nir dossier matricule ipp identifiant serial "
    # places, and ways to reach somebody
    "address addr street city town zip zipcode postcode postal plz wohnort anschrift adresse strasse straße ville "
    "phone telephone telefon mobil handy fax email mail courriel url contact kontakt "
    # institutions and those who work there
    "hospital institution institute clinic klinik krankenhaus hopital hôpital etablissement établissement department "
    "abteilung station ward physician physicians doctor referrer referring arzt ärztin hausarzt überweiser zuweiser "
    "medecin médecin radiologist radiologe radiologue operator technician technologist author annotator befunder "
    # words of somebody's own
    "comment comments note notes remark remarks report reports kommentar bemerkung bemerkungen notiz befund anmerkung "
    "commentaire remarque"
)
NAMES = frozenset(_NAMES.split())
_ENDS = (
    *("name", "birth", "birthday", "birthdate", "datum", "uid", "mrn", "dob", "email", "adresse", "address"),
    *("patientid", "subjectid", "studyid", "caseid", "nummer", "telefon", "physician", "kommentar", "naissance"),
)
_RECORDS = "patient patients patientin subject case person proband fall id ids nr no num number key code"
_RECORD = frozenset(_RECORDS.split())
_JOINT = re.compile(r"(?<=[a-zß-öø-ÿ])(?=[A-ZÀ-ÖØ-Þ])|(?<=[A-ZÀ-ÖØ-Þ])(?=[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ])")  # of PatientIDNumber
_WORDS = re.compile(r"[^\W\d_]+|\d+")

PERSONS, MAIL = "names of persons", "e-mail addresses"
_MONTHS = (
    "jan|feb|fév|mar|mär|mrt|apr|avr|abr|may|mai|maj|mei|mag|jun|juin|giu|jul|juil|lug|aug|août|ago|sep|set|oct|okt|out|"
    "ott|nov|dec|déc|dez|dic|ene|gen"
)
_YEAR = r"(?:1[89]|20)\d\d"
_STREETS = r"straße|strasse|gasse|allee|platz|straat|laan|gracht|[^\W\d_]{2}weg|[^\W\d_]str\."
_TELLING = (  # any one value is enough
    (PERSONS, re.compile(r"[^\W\d_]\.?\s*\^+\s*[^\W\d_]|^[^\W\d_]+\^+$")),
    (MAIL, re.compile(r"@")),
    ("days", re.compile(r"\d{1,4}[-./]\d{1,2}[-./]\d{1,4}")),
    ("days", re.compile(rf"\b\d{{1,2}}(st|nd|rd|th|\.)?[ -]({_MONTHS})[a-zä]*\.?,?[ -]?\d{{2,4}}\b", re.IGNORECASE)),
    ("days", re.compile(rf"\b({_MONTHS})[a-zä]*\.?[ -]\d{{1,2}}(st|nd|rd|th)?,?[ -]\d{{2,4}}\b", re.IGNORECASE)),
    ("days", re.compile(rf"\b\d{{1,2}}\.?[ -]?(de )?({_MONTHS})[^\W\d_]*\.?( de)?[ ,-]*{_YEAR}\b", re.IGNORECASE)),
    ("days", re.compile(rf"\b{_YEAR}-\d\d\b|{_YEAR}\s?年|\d\s?月\s?\d")),
    ("years of birth", re.compile(rf"\b(born|birth|geb|geboren|née?|nacid[oa]|nat[oa])\b.*\b{_YEAR}\b", re.IGNORECASE)),
    ("telephone numbers", re.compile(r"\+\d[\d ()/-]{6,}|\b0\d[\d ()/-]{5,}\d\b|\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b")),
    ("record numbers or days", re.compile(r"\d{6,}|[^\W\d_][-_ #]?\d{5,}|\b\d{2,4}([ -]\d{2,4}){2,}\b")),
    ("record numbers or days", re.compile(r"\b(mrn|pid|pat|nhs|ssn|kis)[-_ #:]*\d{2,}", re.IGNORECASE)),
    ("identifiers", re.compile(r"\b[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}\b|\b\d{1,3}(\.\d+){4,}", re.IGNORECASE)),
    ("addresses", re.compile(rf"({_STREETS}) ?\d|\b\d+ [^\W\d_]+ (st|street|ave|avenue|road)\b", re.IGNORECASE)),
    ("addresses", re.compile(r"\b(rue|calle|via|avenida|plaza|piazza)\b.*\d", re.IGNORECASE)),
    ("paths or files", re.compile(r"[/\\]|\.(png|jpe?g|tiff?|dcm|nii|gz)$", re.IGNORECASE)),
    ("several fields or lines", re.compile(r"^\s*[{\[]\s*[\"'{\[]|[\n\r]")),
)  # fmt: skip
_SURNAME_FIRST = re.compile(r"[^\W\d_][\w'’-]+( [\w'’-]+)?, ?[^\W\d_][\w'’.-]*( [\w'’.-]+)?")


def words_of(name: str) -> list[str]:
    """The words of a column's name in lower case: 'PatientName', 'patient_name' and 'patient name' are the same."""
    return [word.lower() for word in _WORDS.findall(_JOINT.sub(" ", unicodedata.normalize("NFC", name)))]


def telling_name(name: str) -> bool:
    """Whether a column is called as one that tells a person, a place or a day."""
    words = words_of(name)
    if any(word in NAMES or word.endswith(_ENDS) for word in words) or "".join(words) in NAMES:
        return True
    plain = [word for word in words if not word.isdigit()]
    return bool(plain) and _RECORD.issuperset(plain)


def telling_value(cell: str) -> str:
    """What one text seems to be ('days', 'names of persons', ...); '' where it seems to be none of these."""
    found = next((what for what, pattern in _TELLING if pattern.search(cell)), "")
    return found or (PERSONS if speaks_of_person(cell) else "")


def telling_values(cells: Sequence[str]) -> str:
    """What the values of a column seem to be; '' where they seem to be classes or measurements.

    `cells` are those that are known, of all rows. One text that tells is enough; numbers are judged together.
    """
    distinct = sorted(set(cells))
    numbers = [each for each in map(number, distinct) if each is not None]
    if len(numbers) == len(distinct):
        return like_records(numbers, len(cells)) if numbers else ""
    if any(len(cell) > MAX_TEXT for cell in distinct):
        return "long text"
    if found := next((what for cell in distinct if (what := telling_value(cell))), ""):
        return found
    if are_persons(distinct) or sum(_SURNAME_FIRST.fullmatch(cell) is not None for cell in distinct) > len(cells) // 2:
        return PERSONS
    if len(cells) >= FEW and len(distinct) > 0.9 * len(cells):
        return f"text that does not recur ({len(distinct)} values in {len(cells)} rows)"
    return ""


def number(cell: str) -> float | None:
    """The finite number that a cell is, or None."""
    try:
        found = float(cell)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def like_records(numbers: Sequence[float], rows: int) -> str:
    """What distinct numbers seem to be: days, years or record numbers; '' for measurements."""
    if not all(each == int(each) and each >= 0 for each in numbers):
        return ""
    if len(numbers) > 1 and all(1900 <= each <= 2030 for each in numbers):
        return "years"
    if all(19000101 <= n <= 20991231 and 1 <= n // 100 % 100 <= 12 and 1 <= n % 100 <= 31 for n in numbers):
        return "days"
    long = max(numbers) >= 100_000 and (len(numbers) > rows // 2 or min(numbers) >= 100_000)
    return "record numbers or days" if long else ""
