"""Whether a scan is of the kind that a model was trained on: by what its header says, else by its intensities.

Only what is evident counts against a scan. The scale of an MR is arbitrary and never does; CT has one scale, and air.
"""

from collections.abc import Sequence

from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.appearance import Look, Profile, look_of
from scanfoundry.finetune.cases.modality import modality_named
from scanfoundry.finetune.spec import Spec

# Names of a model's modality that are of one family: where no training header said more, any of them will do.
_FAMILIES = ({"xr", "mg", "xa"}, {"pt", "nm"}, {"op", "oct", "xc", "es", "sm"})
_KNOWN = {"ct", "mr", "us"}.union(*_FAMILIES)
_NAMES = {"ct": "CT", "mr": "MR", "us": "ultrasound", "xr": "X-ray", "mg": "mammography", "xa": "angiography"}
_NAMES |= {"pt": "PET", "nm": "nuclear medicine"}
_NOTHING_BELOW = -20.0  # Hounsfield units: fat, lung and air are darker, and some of them is in every scan
_FLAT, _FLATTER = 0.5, 0.2  # share of equal neighbours within a label map; how much more than any training scan has
_TIMES = 10.0  # the scale of a CT, against that of the training scans


def why_unlike(scans: Sequence[Scan | None], spec: Spec) -> str:
    """Why these channels of a case are nothing for the model, in words that follow the file's name; '' where they
    may be."""
    modalities = spec.modalities or [spec.modality] * len(spec.channels)
    for number, scan in enumerate(scans):
        if scan is None:
            continue
        profile = spec.profiles[number] if number < len(spec.profiles) else None
        reason = _of_channel(look_of(scan), modalities[number], profile, alone=len(scans) == 1)
        if reason:
            return reason if len(scans) == 1 else f"channel {spec.channels[number]}: {reason}"
    return ""


def _of_channel(look: Look, modality: str, profile: Profile | None, alone: bool) -> str:
    known = modality_named(modality) or modality.lower()
    if look.levels == 1:  # beside others it stands for a channel that is missing
        return "every voxel has the same value" if alone else ""
    if look.modality in _KNOWN:
        return _by_header(look.modality, known, profile)
    for reason in (_by_hounsfield(look, known, profile), _by_values(look, profile) if profile else ""):
        if reason:
            return reason
    return ""


def _by_header(said: str, known: str, profile: Profile | None) -> str:
    """DICOM's word, and MetaImage's."""
    trained = [each for each in (profile.modalities if profile else []) if each in _KNOWN]
    fitting = set(trained) | ({known} & _KNOWN)
    if not trained:
        fitting = fitting.union(*(family for family in _FAMILIES if known in family))
    if not fitting or said in fitting:
        return ""
    return f"its header says {_named(said)}, the model was trained on {' and '.join(map(_named, sorted(fitting)))}"


def _by_hounsfield(look: Look, known: str, profile: Profile | None) -> str:
    all_ct = profile.ct == 1 if profile else known == "ct"
    some_ct = profile.ct > 0 if profile else known not in _KNOWN or known == "ct"
    if all_ct and not look.is_ct:
        if look.low > _NOTHING_BELOW:
            return "it is no CT in Hounsfield units, as the model was trained on: nothing in it is darker than water"
        if profile:
            return "it is no CT in Hounsfield units: all that the model was trained on hold air near -1000, it has none"
    if known != "ct" and not some_ct and look.is_ct:
        return f"it looks like CT in Hounsfield units, the model was trained on {_named(known)}"
    if known == "ct" and profile:
        low, high = profile.high
        if high > 0 and not low / _TIMES <= look.high <= high * _TIMES:
            return f"its values reach {look.high:.4g}, those of the CT that the model was trained on {high:.4g}"
    return ""


def _by_values(look: Look, profile: Profile) -> str:
    if look.whole and look.levels < profile.levels and look.flat > max(_FLAT, profile.flat + _FLATTER):
        return f"it looks like a label map: {look.levels} values in flat patches"
    if profile.coloured == 0 and look.coloured:
        return "it is in colours, all that the model was trained on is grey"
    if profile.coloured == 1 and not look.coloured:
        return "it is grey, all that the model was trained on is in colours"
    return ""


def _named(modality: str) -> str:
    return _NAMES.get(modality, f"'{modality}'")
