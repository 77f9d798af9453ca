"""The closed vocabularies that facts are drawn from: nothing else of a header can pass."""

import re

from scanfoundry.datasets.readers.dicom.headers.scanner_models import known_model

# DICOM PS3.16, annex L: defined terms of Body Part Examined.
_BODY_PARTS = (
    "ABDOMEN ABDOMENPELVIS ADRENAL ANKLE ANUS AORTA ARM AXILLA BACK BILEDUCT BLADDER BRACHIALPLEXUS BRAIN BREAST "
    "BRONCHUS BUTTOCK CALCANEUS CALF CAROTID CEREBELLUM CERVIX CHEEK CHEST CHESTABDOMEN CHESTABDPELVIS CIRCLEOFWILLIS "
    "CLAVICLE COCCYX COLON CORNEA CORONARYARTERY CSPINE CTSPINE DUODENUM EAR ELBOW ESOPHAGUS EXTREMITY EYE EYELID FACE "
    "FEMUR FINGER FOOT FOREARM GALLBLADDER GLUTEAL HAND HEAD HEADNECK HEART HIP HUMERUS IAC ILEUM ILIUM JAW JEJUNUM "
    "KIDNEY KNEE LARYNX LEG LIVER LSPINE LSSPINE LUNG MAXILLA MEDIASTINUM MOUTH NECK NECKCHEST NECKCHESTABDOMEN "
    "NECKCHESTABDPELV NOSE ORBIT OVARY PANCREAS PAROTID PATELLA PELVIS PENIS PHARYNX PROSTATE RADIUS RECTUM RIB SCALP "
    "SCAPULA SCLERA SCROTUM SHOULDER SINUS SKULL SPINE SPLEEN SSPINE STERNUM STOMACH SUBMANDIBULAR TESTIS THIGH THUMB "
    "THYMUS THYROID TIBIA TIBIAFIBULA TLSPINE TMJ TOE TONGUE TRACHEA TSPINE ULNA URETER URETHRA UTERUS VAGINA VULVA "
    "WHOLEBODY WRIST ZYGOMA"
)
BODY_PARTS = frozenset(_BODY_PARTS.split())
_HEAD_PARTS = "HEAD BRAIN SKULL FACE HEADNECK SINUS ORBIT JAW MAXILLA NOSE EYE IAC TMJ WHOLEBODY"
HEAD_PARTS = frozenset(_HEAD_PARTS.split())
HEAD_WORDS = re.compile(
    r"\b(head|brain|neuro|cran\w*|skull|face|facial|sinus\w*|orbit\w*|kopf|sch[aä]del\w*|hirn|gehirn|cerv?eau|cerebr\w*|"
    r"t[eê]te|cabeza|mprage|whole ?body|ganzk\w*)\b",
    re.IGNORECASE,
)

_NAMED = (
    "accuray agfa analogic aperio aspect barco bruker carestream dentsply elekta esaote fonar hamamatsu heidelberg "
    "hologic kodak konica leica lodox lorad mediso medison mindray mortara neurologica neusoft nidek olympus paramed "
    "planmeca samsung shimadzu sirona supersonic swissray topcon trophy varian vatech ziehm zeiss"
)
_VENDORS = {
    "siemens": r"siemens|acuson",
    "ge": r"ge|g\.? ?e\.?|general electric|(ge|g\.? ?e\.?)[ _]?(medical|healthcare|vingmed|precision).*",
    "philips": r"philips|marconi|picker|atl",
    "toshiba": r"toshiba",
    "canon": r"canon",
    "hitachi": r"hitachi|aloka",
    "fujifilm": r"fuji(film)?|sonosite",
    "united imaging": r"uih|united ?imaging",
    **{name: name for name in _NAMED.split()},
}
_VENDOR_PATTERNS = {
    name: re.compile(rf"(?<![a-z0-9])({pattern})(?![a-z0-9])", re.IGNORECASE) for name, pattern in _VENDORS.items()
}
_GE = re.compile(_VENDORS["ge"], re.IGNORECASE)

_SEQUENCES = (  # the first that fits; of description and protocol
    ("adc", r"adc|apparent diffusion"),
    ("dwi", r"dwi|dti|diff(usion)?|trace ?w?|tracew|ep2d_diff\w*|b[- ]?\d{3,4}"),
    ("perfusion", r"perf(usion)?|dsc|dce|asl|pcasl|cbf|cbv"),
    ("swi", r"swi|swan|suscept\w*|t2\*|t2star|mip_images_sw"),
    ("mra", r"tof|mra|angio\w*"),
    ("bold", r"bold|f ?mri|resting|rest"),
    ("flair", r"(t2[ _-]?)?flair|dark[ _-]?fluid|tirm"),
    ("t1", r"t1w?|t1[a-z]*|mp2?rage|spgr|bravo|vibe|lava|thrive"),
    ("t2", r"t2w?|t2[a-z]*|haste|ssfse"),
    ("pd", r"pdw?|proton"),
)
_SEQUENCE_PATTERNS = [
    (name, re.compile(rf"(?<![a-z0-9])({pattern})(?![a-z0-9])", re.IGNORECASE)) for name, pattern in _SEQUENCES
]


def vendor_of(manufacturer: str) -> str:
    """The known vendor that a manufacturer's name means, or ''."""
    if _GE.fullmatch(manufacturer.strip()):
        return "ge"
    return next((n for n, pattern in _VENDOR_PATTERNS.items() if n != "ge" and pattern.search(manufacturer)), "")


def model_of(vendor: str, model: str, identifying: set[str], short: set[str]) -> str:
    """A scanner's name where `models` lists it, or ''.

    A machine that is called as somebody or something in the header is dropped: by `identifying` strings anywhere in it,
    by `short` name parts (two and three letters) as words of it.
    """
    known = known_model(vendor, model)
    folded = f"{known} {model}".casefold()
    words = set(re.findall(r"[^\W\d_]+", folded))
    identifies = any(one.casefold() in folded for one in identifying) or words & {part.casefold() for part in short}
    return "" if identifies else known


def sequence_of(description: str) -> str:
    """The contrast that an MR description speaks of ('t1', 'flair', 'dwi', ...), or ''."""
    spaced = description.replace("_", " ")
    return next((name for name, pattern in _SEQUENCE_PATTERNS if pattern.search(spaced)), "")
