"""Is a file DICOM? By its bytes: endings and preambles may be missing."""

import struct

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
