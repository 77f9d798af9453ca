"""What a class is called in DICOM: SNOMED CT where the standard's own lists have its name, else a code of ours."""

import hashlib
import re
from typing import Any

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

OWN_SCHEME = "99SCANFOUNDRY"  # schemes that begin with 99 are private (PS3.3, 8.2)
_SIDES = re.compile(r"^(left|right)\b|\b(left|right)$")
_ABNORMAL, _TISSUE = ("cid7159",), ("cid7166",)
_ANATOMY = ("cid7153", "cid7154", "cid7155", "cid7156", "cid7157", "cid7158", "cid4031")


def concept_of(name: str) -> tuple[CodedConcept, CodedConcept]:
    """Category and type (PS3.16, CID 7150 and 7151) of a class by its name; the side is left to the label."""
    words = re.sub(r"[\W_]+", " ", name).strip().casefold()
    plain = _SIDES.sub("", words).strip().replace("tumour", "tumor")
    keyword = "".join(word.capitalize() for word in plain.split())
    lists = (
        (_ABNORMAL, codes.cid7150.MorphologicallyAbnormalStructure),
        (_TISSUE, codes.cid7150.Tissue),
        (_ANATOMY, codes.cid7150.AnatomicalStructure),
    )
    for groups, category in lists:
        for group in groups:
            found = _look_up(group, keyword)
            if found is not None:
                return _concept(category), found
    return _concept(codes.cid7150.SpatialAndRelationalConcept), own_code(name)


def own_code(name: str) -> CodedConcept:
    """A private code that says no more than the name."""
    value = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()
    if not 0 < len(value) <= 16:  # the most that a code value may have
        value = f"{value[:9]}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return CodedConcept(value, OWN_SCHEME, dicom_text(name))


def dicom_text(name: str, most: int = 64) -> str:
    """A name as one value of DICOM (LO, PS3.5, 6.2): without the backslash, which parts values, and control signs."""
    text = "".join(sign if sign.isprintable() else " " for sign in name.replace("\\", "/"))
    return " ".join(text.split())[:most].strip() or "unnamed"


def _look_up(group: str, keyword: str) -> CodedConcept | None:
    collection: Any = getattr(codes, group)
    return _concept(getattr(collection, keyword)) if keyword in dir(collection) and keyword[:1].isupper() else None


def _concept(code: Any) -> CodedConcept:
    return CodedConcept(code.value, code.scheme_designator, code.meaning)
