"""Compressed frames that say they are far larger than their header: no decoder sees one, whichever way it is read."""

import struct
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.encaps import encapsulate, itemize_frame
from pydicom.pixels.decoders.base import DecodeRunner

from scanfoundry.datasets.readers.dicom import group, read_image, read_volume, scan_headers
from scanfoundry.datasets.readers.dicom.conversion import convert
from scanfoundry.datasets.readers.dicom.pixels.codestream import FrameTooLargeError
from scanfoundry.datasets.readers.dicom.pixels.decode import frames_of
from scanfoundry.datasets.readers.scan import ReadError

SIDE = 8000
JPEG2000 = (
    b"\xff\x4f\xff\x51\0\x29\0\0" + struct.pack(">8I", SIDE, SIDE, 0, 0, SIDE, SIDE, 0, 0) + b"\0\1\x0f\1\1"
    + b"\xff\x52\0\x0c\0\0\0\1\0\1\4\4\0\1" + b"\xff\x5c\0\7\x40\x40\x48\x48\x50" + b"\xff\x90\0\x0a\0\0\0\0\0\x0e\0\1"
    + b"\xff\x93\xff\xd9"
).ljust(336, b"\0")  # fmt: skip
SMALL = JPEG2000.replace(struct.pack(">I", SIDE), struct.pack(">I", 32))
JP2 = b"\0\0\0\x0cjP  \r\n\x87\n"


def box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def jpeg(start: int, segments: int = 0) -> bytes:
    wide = struct.pack(">HH", SIDE, SIDE)
    head = b"\xff\xd8" + b"\xff\xfe\0\2" * segments + bytes((0xFF, start)) + b"\0\x0b\x08"
    return (head + wide + b"\1\1\x11").ljust(1500, b"\0")


STREAMS: dict[str, tuple[str, bytes]] = {
    "jpeg 2000": (uid.JPEG2000Lossless, JPEG2000),
    "jpeg 2000 behind another in a box": (uid.JPEG2000, JP2 + box(b"xml ", SMALL) + box(b"jp2c", JPEG2000)),
    "jpeg 2000 behind a long box": (uid.JPEG2000, JP2 + box(b"xml ", bytes(9000)) + box(b"jp2c", JPEG2000)),
    "jpeg": (uid.JPEGBaseline8Bit, jpeg(0xC0)),
    "jpeg of many segments": (uid.JPEGBaseline8Bit, jpeg(0xC0, 300)),
    "jpeg lossless": (uid.JPEGLosslessSV1, jpeg(0xC3)),
    "jpeg-ls": (uid.JPEGLSLossless, jpeg(0xF7)),
    "nothing that is known": (uid.JPEG2000, b"\x89PNG" + bytes(100)),
}


def replaced(path: Path, syntax: str, stream: bytes, fragments: int = 1, length: bool = False) -> None:
    """Gives a file `stream` as its only frame. length: of the pixel element, as it must not have one."""
    data = pydicom.dcmread(path)
    data.file_meta.TransferSyntaxUID = syntax
    if fragments > 1:
        parts = (stream[:2], stream[2:6], stream[6:] + b"\0" * (len(stream) % 2))
        data.PixelData = b"\xfe\xff\0\xe0" + bytes(4) + b"".join(
            b"\xfe\xff\0\xe0" + struct.pack("<I", len(part)) + part for part in parts
        )  # fmt: skip
    else:
        data.PixelData = encapsulate([stream])
    data["PixelData"].VR = "OB"
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    if length:
        content = path.read_bytes()
        at = content.rindex(b"\xe0\x7f\x10\0OB\0\0\xff\xff\xff\xff") + 8
        padding = bytes(8000)
        path.write_bytes(content[:at] + struct.pack("<I", len(content) - at - 4 + 8000) + content[at + 4 :] + padding)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the frames that a decoder was given, and a 0 for each start of the converter."""
    found: list[int] = []
    decode, run = DecodeRunner._decode_frame, convert.subprocess.run
    monkeypatch.setattr(DecodeRunner, "_decode_frame", lambda self, src: (found.append(len(src)), decode(self, src))[1])
    monkeypatch.setattr(convert.subprocess, "run", lambda *a, **k: (found.append(0), run(*a, **k))[1])
    return found


def all_read(root: Path) -> list[str]:
    """The reason of each source below `root`; all must be refused."""
    reasons = []
    for source in group(scan_headers(sorted(root.rglob("*.dcm"))), root)[0]:
        with pytest.raises(ReadError) as caught:
            list({"dicom-volume": read_volume, "dicom-image": read_image}[source.kind](source))
        reasons.append(str(caught.value))
    return reasons


def series(root: Path, dicom: SimpleNamespace) -> list[Path]:
    return list(dicom.slices(root, [(0.0, 0.0, 2.0 * k) for k in range(4)]))


def capture(root: Path, dicom: SimpleNamespace) -> list[Path]:
    data = dicom.header(SOPClassUID=uid.SecondaryCaptureImageStorage, Modality="OT")
    dicom.put_pixels(data, dicom.texture(40, 36, 1))
    return [dicom.save(data, root / "0000.dcm")]


def copies(root: Path, dicom: SimpleNamespace) -> list[Path]:
    """Two files of one instance, neither of which is whole by its lengths."""
    return [*capture(root / "a", dicom), *capture(root / "b", dicom)]


def enhanced(root: Path, dicom: SimpleNamespace) -> list[Path]:
    data = dicom.enhanced([(0.0, 0.0, 1.0)], np.stack([dicom.texture(40, 36, 1)]))
    return [dicom.save(data, root / "0000.dcm")]


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("make", [series, capture, copies, enhanced])
def test_a_frame_larger_than_declared_reaches_no_decoder(
    tmp_path: Path, dicom: SimpleNamespace, seen: list[int], name: str, make: Callable[..., list[Path]]
) -> None:
    syntax, stream = STREAMS[name]
    files = make(tmp_path, dicom)
    for path in files[-2:]:
        replaced(path, syntax, stream)
    reasons = all_read(tmp_path)
    assert reasons
    assert all(any(word in reason for word in ("frame", "be decoded", "dcm2niix makes")) for reason in reasons), reasons
    assert max([length for length in seen if length], default=0) == 0
    unknown = name == "nothing that is known"  # a rotten start, which is no decoder's: the converter counts its slices
    with pytest.raises(ReadError if unknown else FrameTooLargeError):
        list(frames_of(scan_headers([files[-1]])[0]))
    assert unknown or seen == []


@pytest.mark.parametrize("how", [{"fragments": 3}, {"length": True}])
@pytest.mark.parametrize("make", [series, capture, copies, enhanced])
def test_a_header_in_pieces_or_an_element_with_a_length(
    tmp_path: Path, dicom: SimpleNamespace, seen: list[int], how: dict, make: Callable[..., list[Path]]
) -> None:
    for path in make(tmp_path, dicom):
        replaced(path, uid.JPEG2000Lossless, JPEG2000, **how)
    assert all_read(tmp_path)
    assert seen == []


def test_a_whole_frame_in_pieces_is_read(tmp_path: Path, dicom: SimpleNamespace) -> None:
    """Fragments of one frame that begin anywhere in its stream."""
    paths = dicom.slices(tmp_path, [(0.0, 0.0, 2.0 * k) for k in range(4)], syntax=uid.JPEG2000Lossless)
    (whole,), _ = dicom.load(tmp_path)
    for path in paths:
        data = pydicom.dcmread(path)
        stream = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
        data.PixelData = bytes.fromhex("feff00e000000000") + b"".join(itemize_frame(stream, 3))
        data.save_as(path)
    (scan,), _ = dicom.load(tmp_path)
    assert np.array_equal(scan.voxels, whole.voxels)


@pytest.mark.parametrize("make", [series, capture, copies, enhanced])
def test_a_frame_that_makes_a_decoder_panic_is_refused(
    tmp_path: Path, dicom: SimpleNamespace, capfd: pytest.CaptureFixture[str], make: Callable[..., list[Path]]
) -> None:
    """The RLE decoder's panic is no Exception: it ended a build, and a batch, with a traceback."""
    runs = b"\x81\x07" * 20  # 2560 bytes, of 40 x 36 in each of two segments
    stream = struct.pack("<16I", 2, 64, 64 + len(runs), *[0] * 13) + runs + runs
    files = make(tmp_path, dicom)
    for path in files:
        replaced(path, uid.RLELossless, stream)
    with pytest.raises(ReadError, match="cannot be decoded"):
        list(frames_of(scan_headers([files[-1]])[0]))
    assert all("decoded" in reason or "dcm2niix" in reason for reason in all_read(tmp_path))
    assert "panicked" not in capfd.readouterr().err
