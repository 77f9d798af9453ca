"""What a DICOM object is by its SOP class and modality: an image, a slice of a volume, or nothing to train on."""

_STORAGE = "1.2.840.10008.5.1.4.1.1."
DICOMDIR = "1.2.840.10008.1.3.10"
CT, MR, PT, NM = (_STORAGE + end for end in ("2", "4", "128", "20"))
SECONDARY_CAPTURE = _STORAGE + "7"

# Frames with a position each, in functional groups: enhanced CT, MR, PT, their legacy conversions, angiographic CT
# and breast tomosynthesis.
MULTI_FRAME_VOLUMES = frozenset(
    _STORAGE + end for end in ("2.1", "2.2", "4.1", "4.3", "4.4", "130", "128.1", "13.1.1", "13.1.2", "13.1.3")
)

_BY_CLASS = {
    DICOMDIR: "DICOMDIR: a directory of other files",
    "1.2.840.10008.5.1.4.38.": "hanging protocol, no image",
    "1.2.840.10008.5.1.4.39.": "colour palette, no image",
    "1.2.840.10008.5.1.4.34.": "procedure step, no image",
    _STORAGE + "4.2": "MR spectroscopy, no image",
    _STORAGE + "9.": "waveform (ECG or the like), no image",
    _STORAGE + "11.": "presentation state, no image",
    _STORAGE + "30": "parametric map: a derived result, not a scan",
    _STORAGE + "66": "raw data, registration or segmentation: no image",
    _STORAGE + "66.4": "segmentation: labels, not a scan",
    _STORAGE + "66.7": "segmentation: labels, not a scan",
    _STORAGE + "67": "real world value mapping, no image",
    _STORAGE + "68.": "surface scan, no image",
    _STORAGE + "77.1.5.3": "stereometric relationship, no image",
    _STORAGE + "78.": "measurements of the eye, no image",
    _STORAGE + "79.1": "measurements of the eye, no image",
    _STORAGE + "80.1": "measurements of the eye, no image",
    _STORAGE + "88.": "structured report, no image",
    _STORAGE + "90.": "content assessment, no image",
    _STORAGE + "104.": "encapsulated document or model, no image",
    _STORAGE + "131": "display protocol, no image",
    _STORAGE + "200.": "procedure record, no image",
    _STORAGE + "201.": "procedure record, no image",
    _STORAGE + "481.": "radiotherapy plan or record, no image",
    _STORAGE + "481.2": "radiotherapy dose map: computed, not a scan",
    _STORAGE + "481.3": "radiotherapy structure set: contours, not a scan",
    _STORAGE + "481.1": "",  # portal images are images
    _STORAGE + "481.23": "",
}
# Where the class is not given. Those with pixels are left out by the first four only.
_BY_MODALITY = {
    "RTDOSE": _BY_CLASS[_STORAGE + "481.2"],
    "SEG": _BY_CLASS[_STORAGE + "66.4"],
    "RTSTRUCT": _BY_CLASS[_STORAGE + "481.3"],
    "RTPLAN": _BY_CLASS[_STORAGE + "481."],
    "RTRECORD": _BY_CLASS[_STORAGE + "481."],
    "SR": _BY_CLASS[_STORAGE + "88."],
    "PR": _BY_CLASS[_STORAGE + "11."],
    "KO": "key object selection, no image",
    "REG": "registration, no image",
    "FID": "fiducials, no image",
    "RWV": _BY_CLASS[_STORAGE + "67"],
    "DOC": _BY_CLASS[_STORAGE + "104."],
    "M3D": _BY_CLASS[_STORAGE + "104."],
    "PLAN": "plan, no image",
} | dict.fromkeys(("ECG", "EPS", "HD", "AU", "RESP", "EMG", "EEG", "EOG"), _BY_CLASS[_STORAGE + "9."])
_ALWAYS = ("RTDOSE", "SEG", "RTSTRUCT", "RTPLAN")

_SHORT = {"CT": "ct", "MR": "mr", "PT": "pt", "NM": "nm", "MG": "mg", "US": "us", "IVUS": "us", "XA": "xa", "RF": "xa"}
_SHORT |= dict.fromkeys(("CR", "DX", "RG", "PX", "IO", "RTIMAGE"), "xr")
_SHORT |= {"OP": "op", "OPT": "oct", "IVOCT": "oct", "GM": "sm", "SM": "sm", "XC": "xc", "ES": "es", "DMS": "xc"}
_MODALITY_OF_CLASS = {
    "1": "CR", "1.1": "DX", "1.1.1": "DX", "1.2": "MG", "1.2.1": "MG", "1.3": "IO", "1.3.1": "IO", "2": "CT",
    "2.1": "CT", "2.2": "CT", "3": "US", "3.1": "US", "4": "MR", "4.1": "MR", "4.3": "MR", "4.4": "MR", "6": "US",
    "6.1": "US", "12.1": "XA", "12.1.1": "XA", "12.2": "RF", "12.2.1": "RF", "13.1.3": "MG", "20": "NM",
    "77.1.1": "ES", "77.1.2": "GM", "77.1.3": "SM", "77.1.4": "XC", "77.1.5.1": "OP", "77.1.5.4": "OPT",
    "77.1.6": "SM", "128": "PT", "128.1": "PT", "130": "PT", "481.1": "RTIMAGE",
}  # fmt: skip


def why_no_image(sop_class: str, modality: str, has_pixels: bool) -> str:
    """Why an object of this class holds no image by its nature; '' for images and for what is unknown."""
    known = [start for start in _BY_CLASS if sop_class == start or (start[-1] == "." and sop_class.startswith(start))]
    if sop_class.startswith(_STORAGE + "66."):
        known.append(_STORAGE + "66")
    if known:
        return _BY_CLASS[max(known, key=lambda start: (start == sop_class, len(start)))]
    if has_pixels and modality not in _ALWAYS:
        return ""
    return _BY_MODALITY.get(modality, "")


def dicom_modality(sop_class: str, modality: str) -> str:
    """DICOM's own modality code; out of the SOP class where the header does not give one."""
    return modality or _MODALITY_OF_CLASS.get(sop_class.removeprefix(_STORAGE), "")


def short_modality(sop_class: str, modality: str) -> str:
    """`Scan.modality` for a DICOM modality code: 'ct', 'mr', 'pt', 'nm', 'us', 'xr', 'mg', 'xa', ..., 'ot', or ''."""
    code = dicom_modality(sop_class, modality)
    return _SHORT.get(code, "ot" if code else "")


def is_secondary_capture(sop_class: str) -> bool:
    """Secondary captures: screens, films, whatever was put into DICOM afterwards."""
    return sop_class == SECONDARY_CAPTURE or sop_class.startswith(SECONDARY_CAPTURE + ".")
