"""The elements of a file by a walk through its bytes: whether it is DICOM at all, and all its short values."""

import struct
from collections.abc import Mapping

import pydicom
from pydicom.dataelem import RawDataElement

from scanfoundry.datasets.readers.dicom.headers.file_header import FileHeader
from scanfoundry.datasets.readers.dicom.headers.values import suppress_warnings

# VRs whose explicit form has two reserved bytes and a length of four.
LONG_VRS = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
_SHORT_VRS = frozenset(
    b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split(),
)
UNDEFINED = 0xFFFFFFFF
_PREFIX_AT = 128
_ENOUGH = 5  # elements in a row that parse: no other file does that by chance


def is_dicom(head: bytes, size: int) -> bool:
    """Whether a file that starts with `head` (some 4 KiB) and has `size` bytes is DICOM, with or without preamble."""
    if head[_PREFIX_AT : _PREFIX_AT + 4] == b"DICM":
        return True
    return any(_parses(head, size, order, explicit) for order in "<>" for explicit in (True, False))


def _parses(head: bytes, size: int, order: str, explicit: bool) -> bool:
    """A run of elements in rising order from the first byte on, in group 2 or 8 first, of plausible lengths."""
    offset, last = 0, (0, 0)
    for found in range(_ENOUGH + 1):
        if found == _ENOUGH or (found >= 2 and offset == size):
            return True
        if offset + 12 > len(head):
            return found >= 2 and last[0] >= 8 and offset <= size
        group, element = struct.unpack_from(order + "HH", head, offset)
        if (group, element) <= last or (found == 0 and group not in (2, 8)) or group > 0x7FE0:
            return False
        start, length = element_length(head, offset, order, explicit)
        if start < 0 or (length != UNDEFINED and start + length > size) or (length % 2 and length != UNDEFINED):
            return False
        if length == UNDEFINED:
            return found >= 2
        offset, last = start + length, (group, element)
    return False


def element_length(head: bytes, offset: int, order: str, explicit: bool) -> tuple[int, int]:
    """(where the value starts, its length) of the element at `offset`; (-1, 0) where its VR is none."""
    if not explicit:
        return offset + 8, struct.unpack_from(order + "I", head, offset + 4)[0]
    vr = head[offset + 4 : offset + 6]
    if vr in LONG_VRS:
        return offset + 12, struct.unpack_from(order + "I", head, offset + 8)[0]
    if vr in _SHORT_VRS:
        return offset + 8, struct.unpack_from(order + "H", head, offset + 6)[0]
    return -1, 0


_SHORT_VALUE = 64  # bytes of a value that can be one of a few
_META_START = 132  # where the meta information begins, behind preamble and prefix
_IMPLICIT = "1.2.840.10008.1.2"
_NOT_PLAIN = ("", "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99")  # unknown, big endian, deflated
_MOST = 1 << 20


def short_elements(file: FileHeader) -> Mapping[int, bytes]:
    """Values of up to 64 bytes by tag, of the header itself and not of its sequences; {} where it is damaged."""
    if file.syntax not in _NOT_PLAIN and 0 < file.pixel_offset < _MOST:
        with file.path.open("rb") as opened:
            found = _walked(opened.read(file.pixel_offset), file.syntax != _IMPLICIT)
        if found is not None:
            return found
    try:
        with suppress_warnings():
            header = pydicom.dcmread(file.path, stop_before_pixels=True, force=True)
    except Exception:  # whatever damage makes pydicom raise
        return {}
    raw = [each for each in header.values() if isinstance(each, RawDataElement) and each.value]
    return {int(each.tag): bytes(each.value) for each in raw if len(each.value) <= _SHORT_VALUE}  # type: ignore[arg-type]


def _walked(head: bytes, explicit: bool) -> dict[int, bytes] | None:
    """The elements in `head`, which ends within that of the pixels; None where there is anything but plain elements."""
    if head[_META_START - 4 : _META_START] != b"DICM":
        return None
    found: dict[int, bytes] = {}
    offset = _META_START
    while offset + 12 <= len(head):
        group, element = struct.unpack_from("<HH", head, offset)
        if group == 0x7FE0:
            return found
        start, length = element_length(head, offset, "<", explicit or group == 2)
        if start < 0 or length == UNDEFINED or start + length > len(head):
            return None
        if length <= _SHORT_VALUE:
            found[group << 16 | element] = head[start : start + length]
        offset = start + length
    return found
