"""Headers of NRRD and MetaImage: where the voxels lie, and whether they are all there.

ITK itself reads a compressed stream that is damaged without a word; the stream's own checksum is looked at here.
"""

import math
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePath

from scanfoundry.datasets.readers.guard import check_expansion
from scanfoundry.datasets.readers.scan import ReadError

MAX_HEADER_BYTES = 2**20
MAX_LINE = 250
_CHUNK = 2**20
_PER_AXIS = {"dimsize", "elementspacing", "elementsize", "offset", "position", "origin", "centerofrotation"}
_PER_PAIR = {"transformmatrix", "rotation", "orientation"}


@dataclass(frozen=True)
class ItkHeader:
    """fields by lower-case name; the voxels' file (relative, None: the same) and their offset; `packed`: by zlib."""

    fields: dict[str, str]
    data_file: str | None
    offset: int
    packed: bool


def read_header(path: Path) -> ItkHeader:
    """The header of a .nrrd, .nhdr, .mha or .mhd.

    Raises:
        ReadError: the file has no such header, or its header points out of its folder.
    """
    with path.open("rb") as stream:
        start = stream.read(MAX_HEADER_BYTES)
    header = _nrrd(start) if start.startswith(b"NRRD000") else _metaimage(start)
    if header.data_file is not None:
        name = PurePath(header.data_file)
        if name.is_absolute() or ".." in name.parts or "%" in header.data_file or header.data_file.upper() == "LIST":
            raise ReadError("its voxels lie in several files or outside its folder")
        if not (path.parent / name).is_file():
            raise ReadError("the file of its voxels is missing")
    return header


def data_files(path: Path) -> tuple[str, ...]:
    """Names, relative to its folder, of the files that `path` needs besides itself; () where it is no such header."""
    try:
        header = read_header(path)
    except (ReadError, OSError):
        return ()
    return () if header.data_file is None else (header.data_file,)


def check_stream(path: Path, header: ItkHeader, expected: int) -> None:
    """ReadError where the file of the voxels does not hold `expected` bytes of them, or its checksum fails."""
    file = path if header.data_file is None else path.parent / header.data_file
    stored = file.stat().st_size - header.offset
    if not header.packed:
        check_expansion(expected, expected)
        if stored < expected:
            raise ReadError(f"cut short: {max(0, stored)} of {expected} bytes of voxels")
        return
    check_expansion(expected, stored)
    found, packed = _inflated(file, header.offset, expected)
    if found != expected:
        raise ReadError(f"compressed data hold {'more than ' if found > expected else ''}{found} of {expected} bytes")
    if "elementdatafile" in header.fields:
        _check_size(header, packed, stored)


def _check_size(header: ItkHeader, packed: int, stored: int) -> None:
    """MetaIO takes memory for as many compressed bytes as the header says, reads no more of them, and says nothing.

    packed: bytes that there are of them; stored: of the file behind the header.
    """
    declared = header.fields.get("compresseddatasize", "0")
    if declared.strip("0") == "" and header.data_file is not None:  # then it takes the whole file
        return
    if not declared.isdigit() or len(declared) > 18 or not packed <= int(declared) <= stored:
        raise ReadError(f"its header declares {declared[:20]} bytes of compressed data, they are {packed}")


def _inflated(file: Path, offset: int, expected: int) -> tuple[int, int]:
    """How many bytes the stream unpacks to, one piece more than expected at most, and how many it has itself."""
    unpack, found, read = zlib.decompressobj(32 + zlib.MAX_WBITS), 0, 0
    with file.open("rb") as stream:
        stream.seek(offset)
        while not unpack.eof and found <= expected:
            chunk = unpack.unconsumed_tail
            if not chunk:
                chunk = stream.read(_CHUNK)
                read += len(chunk)
            if not chunk:
                raise ReadError("cut short: its compressed data do not end")
            found += len(unpack.decompress(chunk, _CHUNK))
    return found, read - len(unpack.unused_data) - len(unpack.unconsumed_tail)


def _nrrd(start: bytes) -> ItkHeader:
    lines, offset = _lines(start, until=b"")
    fields = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon and not line.startswith("#") and not value.startswith("="):
            fields[name.strip().lower()] = value.strip()
    encoding = fields.get("encoding", "").lower()
    if encoding not in {"raw", "gzip", "gz"}:
        raise ReadError(f"NRRD encoding '{encoding}' is not supported; raw and gzip are")
    data_file = fields.get("data file") or fields.get("datafile")
    if "line skip" in fields or "lineskip" in fields or fields.get("byte skip", fields.get("byteskip", "0")) != "0":
        raise ReadError("NRRD with line skip or byte skip is not supported")
    return ItkHeader(fields, data_file, 0 if data_file else offset, encoding != "raw")


def _metaimage(start: bytes) -> ItkHeader:
    lines, offset = _lines(start, until=b"ElementDataFile")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition("=") for line in lines)}
    data_file = fields.get("elementdatafile")
    if data_file is None or "dimsize" not in fields:
        raise ReadError("no header of a NRRD or MetaImage")
    _check_overflow(fields, lines)
    if fields.get("binarydata", "true").lower() not in {"true", "t", "1"}:
        raise ReadError("MetaImage with voxels as text is not supported")
    slope, shift = (fields.get(f"elementtointensityfunction{name}") for name in ("slope", "offset"))
    if float(slope or 1) != 1 or float(shift or 0) != 0:
        raise ReadError("its header scales the voxels (ElementToIntensityFunction), which ITK leaves out")
    foreign = max(0, int(fields.get("headersize", "0")))  # -1: the voxels are what the file ends with
    packed = fields.get("compresseddata", "").lower() in {"true", "t", "1"}
    if data_file.upper() == "LOCAL":
        return ItkHeader(fields, None, offset + foreign, packed)
    return ItkHeader(fields, data_file, foreign, packed)


def _check_overflow(fields: dict[str, str], lines: list[str]) -> None:
    """MetaIO writes what the header says into arrays of fixed length, unchecked: 83 dimensions end the process."""
    if fields.get("objecttype", "Image") != "Image" or fields.get("ndims") not in {"2", "3", "4"}:
        raise ReadError("no MetaImage of 2, 3 or 4 dimensions")
    side = int(fields["ndims"])
    for names, count in ((_PER_AXIS, side), (_PER_PAIR, side * side)):
        for name in names & fields.keys():
            numbers = fields[name].split()
            if len(numbers) != count or not all(math.isfinite(float(number)) for number in numbers):
                raise ReadError(f"its header gives '{name}' not as {count} numbers")
    if not all(0 < int(size) < 2**31 for size in fields["dimsize"].split()):
        raise ReadError("its header gives 'dimsize' not as sizes")
    if not 0 < int(fields.get("elementnumberofchannels", "1")) < 2**10:
        raise ReadError("its header gives 'elementnumberofchannels' not as a small number")
    if max(map(len, lines)) > MAX_LINE or len(fields) < len(lines):
        raise ReadError("its header has overlong lines, or says something twice")


def _lines(start: bytes, until: bytes) -> tuple[list[str], int]:
    """The header's lines and where it ends: after the line that begins with `until`, or that is empty."""
    lines: list[str] = []
    offset = 0
    for line in start.splitlines(keepends=True):
        offset += len(line)
        text = line.strip()
        lines.append(text.decode("utf-8", "replace"))
        if text.startswith(until) if until else not text:
            break
    return lines, offset
