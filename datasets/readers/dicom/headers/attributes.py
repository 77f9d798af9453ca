"""The attributes that tell acquisitions apart, and their values, left unparsed: millions of headers are scanned."""

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset

# Slices that differ in one of these are no volume together.
_APART = (
    "ImageType SeriesNumber SeriesDescription ProtocolName ScanningSequence SliceThickness KVP RepetitionTime EchoTime "
    "EchoNumbers FlipAngle ConvolutionKernel ContrastBolusAgent ContrastBolusAgentPhase AcquisitionContrast "
    "ComplexImageComponent DiffusionBValue TemporalPositionIdentifier TemporalPositionIndex FrameOfReferenceUID "
    "StackID Units FrameType EffectiveEchoTime NominalPercentageOfCardiacPhase NominalPercentageOfRespiratoryPhase"
)
# These change within a volume too (from slab to slab, bed to bed, beat to beat); where several slices lie at each
# position they say which belong together.
_IN_TURN = (
    "AcquisitionNumber TriggerTime FrameReferenceTime ActualFrameDuration InversionTime SequenceName FilterType "
    "ReconstructionMethod AttenuationCorrectionMethod DiffusionGradientOrientation NominalCardiacTriggerDelayTime "
    "TemporalPositionTimeOffset"
)
# These may be too coarse to say it, and private ones may be anything: they count where they are clear.
_AT_TIMES = "AcquisitionTime ContentTime AcquisitionDateTime SeriesTime"
_PRIVATE = {
    "b-value (Siemens)": 0x0019100C,
    "b-value (Philips)": 0x20011003,
    "b-value (GE)": 0x00431039,
    "b-value (United Imaging)": 0x00651009,
    "timer (GE)": 0x0021105E,
}
_OF_FRAMES = ("FrameAcquisitionNumber", "ContrastBolusAgentNumber")
APART, IN_TURN, AT_TIMES = "apart", "in turn", "at times"

_STRENGTHS = (
    dict.fromkeys(_APART.split(), APART)
    | dict.fromkeys(_IN_TURN.split(), IN_TURN)
    | dict.fromkeys((*_AT_TIMES.split(), *_PRIVATE), AT_TIMES)
)
_TAGS = {name: _PRIVATE.get(name) or int(tag_for_keyword(name) or 0) for name in _STRENGTHS}
_PLACES = {tag: number for number, tag in enumerate(_TAGS.values())}
TAGS = tuple(_TAGS.values())


Value = tuple[float | str, ...]


@dataclass(frozen=True)
class Attribute:
    """An attribute of several planes: one value of each; `strength` is APART, IN_TURN or AT_TIMES."""

    name: str
    strength: str
    values: tuple[Value, ...]

    @property
    def is_scale(self) -> bool:
        """Whether its values are numbers, which can put slices in order."""
        return all(len(value) == 1 and isinstance(value[0], float) for value in self.values)


def attribute_values(header: Dataset, known: dict[bytes, bytes]) -> tuple[bytes, ...]:
    """The raw values in a header of what tells acquisitions apart.

    Args:
        header: parsed, with its elements still raw.
        known: equal values of other files. A series of thousands then holds each value once, in memory and on its way
            between processes.

    Returns:
        In the order of `TAGS`; b'' where one is not given.
    """
    values = [b""] * len(TAGS)
    for element in header.values():
        place = _PLACES.get(element.tag)
        if place is not None and isinstance(element, RawDataElement) and element.value:
            values[place] = known.setdefault(element.value, element.value)
    return tuple(values)


def attributes_of_files(values: Sequence[tuple[bytes, ...]]) -> list[Attribute]:
    """The attributes that differ between the files. values: `FileHeader.attributes` of each file."""
    found = []
    for name, several in zip(_TAGS, zip(*values, strict=True), strict=True):
        if len(set(several)) > 1:
            read = {raw: _comparable(name, raw) for raw in set(several)}
            found.append(Attribute(name, _STRENGTHS[name], tuple(read[raw] for raw in several)))
    return [attribute for attribute in found if len(set(attribute.values)) > 1]


def attributes_of_frames(frames: Sequence[dict[str, Value]]) -> list[Attribute]:
    """The attributes that differ between the frames of an object. Attributes unknown here are IN_TURN."""
    names = dict.fromkeys(name for frame in frames for name in frame)
    found = [
        Attribute(name, _STRENGTHS.get(name, IN_TURN), tuple(frame.get(name, ()) for frame in frames)) for name in names
    ]
    return [attribute for attribute in found if len(set(attribute.values)) > 1]


def attributes_of_frame(frame: Dataset, depth: int = 3) -> dict[str, Value]:
    """The known attributes of a frame's functional groups, at whatever depth they lie."""
    found: dict[str, Value] = {}
    for element in frame:
        if element.VR == "SQ" and depth:
            for item in element.value:
                found |= attributes_of_frame(item, depth - 1)
        elif element.keyword in _STRENGTHS or element.keyword in _OF_FRAMES:
            several = element.value if element.VM > 1 else [element.value]
            found[element.keyword] = tuple(_number(str(part).encode(), 9) for part in several)
    return found


def _comparable(name: str, raw: bytes) -> Value:
    """Numbers as numbers: '1' is '1.0' and 0 is -0. Thicknesses are written with more digits than they have."""
    if name in _PRIVATE:
        return (raw.decode("latin-1"),)
    if dictionary_VR(_TAGS[name]) == "FD" and len(raw) % 8 == 0:
        return tuple(round(number, 6) + 0.0 for number in struct.unpack(f"<{len(raw) // 8}d", raw))
    return tuple(_number(part, 3 if name == "SliceThickness" else 9) for part in raw.strip(b" \0").split(b"\\"))


def _number(part: bytes, digits: int) -> float | str:
    try:
        number = float(f"{float(part):.{digits}g}") + 0.0
    except ValueError:
        number = math.nan
    return number if math.isfinite(number) else part.decode("latin-1").strip().upper()
