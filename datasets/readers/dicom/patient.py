"""Who a header says the scan is of."""

import re

from scanfoundry.datasets.readers.dicom.headers import Survey

_WORDS = (
    "anon anonymous anonymised anonymized anonym anonymize deidentified deid unknown unnamed none null nil na test "
    "testpatient patient patientid id noid removed redacted deleted dummy phantom default xxx private hidden"
)
_DUMMIES = frozenset(_WORDS.split())


def patient_of(file: Survey) -> str | None:
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
