"""The content of `patients.txt`: keyed hashes of those whom a model's weights have seen."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class PatientList:
    """Sorted hashes, one a line. A run makes its list once: sorting a million takes seconds."""

    text: bytes
    count: int

    @classmethod
    def of(cls, patients: "Iterable[str] | PatientList") -> "PatientList":
        """The list of these patients, or that very list."""
        if isinstance(patients, PatientList):
            return patients
        lines = sorted(patients)
        return cls("".join(f"{line}\n" for line in lines).encode(), len(lines))

    @cached_property
    def sha256(self) -> str:
        """Of the text, hexadecimal."""
        return hashlib.sha256(self.text).hexdigest()
