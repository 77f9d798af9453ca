"""Names of modalities: a slip in one would make it a modality of its own, with another intensity scaling."""

import difflib
import re
from typing import Annotated

from pydantic import BeforeValidator

# The codes that readers give, with the words that people use for them.
WORDS = {
    "ct": "cat ctscan cta ctp ncct cect cbct tomography computedtomography",
    "mr": "mri mrt mra nmr magneticresonance t1 t1w t1c t1ce t1gd t2 t2w flair dwi adc swi fmri mrscan",
    "us": "usg ultrasound sono sonography sonogram",
    "xr": "xray cr dx rx cxr radiograph radiography",
    "mg": "mammo mammography mammogram dm",
    "pt": "pet petct suv",
    "nm": "spect scintigraphy",
    "xa": "angio angiography dsa",
}
KNOWN = (*WORDS, "ot", "op", "es", "gm", "sm", "xc", "ivus", "unknown")
OWN = {"oct", "rgb"}  # near a code, and another thing
_MEANT = {word: code for code, words in WORDS.items() for word in words.split()}


def meant(name: str) -> str | None:
    """The code that a name stands for or is near to. None where the name is a code, or a name of its own."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    if name in KNOWN or plain in OWN:
        return None
    if plain in KNOWN or plain in _MEANT:
        return _MEANT.get(plain, plain)
    near = difflib.get_close_matches(plain, WORDS, n=1, cutoff=0.75) if len(plain) > 2 else []
    near = near or [_MEANT[word] for word in difflib.get_close_matches(plain, _MEANT, n=1, cutoff=0.8)
                    if len(plain) > 3]  # fmt: skip
    return near[0] if near else None


def settled(name: object) -> object:
    """A modality in small letters.

    Raises:
        ValueError: another one seems to be meant, or it is no name.
    """
    if not isinstance(name, str):
        return name
    plain = name.strip().lower()
    if (code := meant(plain)) is not None:
        raise ValueError(f"'{name}' is no modality; did you mean '{code}'?")
    if not re.fullmatch(r"[a-z0-9_-]+", plain):
        raise ValueError(f"'{name}' is no name of a modality: small letters, digits, '-' and '_' (ct, mr, us, xr, ...)")
    return plain


Modality = Annotated[str, BeforeValidator(settled)]
