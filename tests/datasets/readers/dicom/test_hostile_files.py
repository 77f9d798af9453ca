"""Headers that lie, are cut, or are alike in every file: no hang, nothing lost, and the reason is the true one."""

import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from scanfoundry.datasets.readers.dicom import group, scan_headers

CR = "1.2.840.10008.5.1.4.1.1.1"
CUT = "no pixel data found: none stored, or the header is cut or damaged"


def image(dicom: SimpleNamespace, path: Path, syntax: str = ExplicitVRLittleEndian, **values: str | int) -> Path:
    dataset = dicom.header(SOPClassUID=CR, Modality="CR", **values)
    dicom.put_pixels(dataset, dicom.texture(30, 20, len(values)))
    return dicom.save(dataset, path, syntax)


def reason(path: Path) -> str:
    (found,) = group(scan_headers([path]), path.parent)[1]
    return found[1]


def test_one_instance_uid_for_all_files_loses_none(tmp_path: Path, dicom: SimpleNamespace) -> None:
    """Some anonymisers write the same UID into every file."""
    dicom.slices(tmp_path / "ct", [(0.0, 0.0, 2.0 * k) for k in range(5)], SOPInstanceUID="1.2.3")
    for number in range(3):
        image(dicom, tmp_path / f"x{number}", SOPInstanceUID="1.2.4", SeriesInstanceUID="1.2.5", InstanceNumber=number)
    scans, refusals = dicom.load(tmp_path)
    assert sorted(scan.voxels.shape[1] for scan in scans) == [1, 1, 1, 5]
    assert refusals == []


def test_overlays_are_no_slices(tmp_path: Path, dicom: SimpleNamespace) -> None:
    for path in dicom.slices(tmp_path, [(0.0, 0.0, 2.0 * k) for k in range(4)]):
        dataset = pydicom.dcmread(path)
        shape, place, bits = [(0x10, "US", 40), (0x11, "US", 36)], [(0x50, "SS", [1, 1])], [(0x100, "US", 1)]
        for tag, vr, value in [*shape, *place, *bits, (0x40, "CS", "G"), (0x3000, "OW", bytes(90) + b"\xff" * 90)]:
            dataset.add_new((0x6000, tag), vr, value)
        dataset.save_as(path)
    (scan,), _ = dicom.load(tmp_path)
    assert np.array_equal(scan.voxels[0, 2, ::-1], dicom.texture(40, 36, 2) - 1024)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7])
def test_a_cut_header_is_called_so(tmp_path: Path, dicom: SimpleNamespace, share: float) -> None:
    content = image(dicom, tmp_path / "x.dcm").read_bytes()
    end = content.index(b"\xe0\x7f\x10\x00")
    (tmp_path / "x.dcm").write_bytes(content[: 400 + int(share * (end - 400))])
    assert reason(tmp_path / "x.dcm") in (CUT, "damaged DICOM header")


def test_a_length_that_hides_the_pixels_is_damage(tmp_path: Path, dicom: SimpleNamespace) -> None:
    content = bytearray(image(dicom, tmp_path / "x.dcm").read_bytes())
    content[content.index(b"\x20\x00\x11\x00IS") + 7] = 255
    (tmp_path / "x.dcm").write_bytes(content)
    assert reason(tmp_path / "x.dcm") == CUT


def test_a_sequence_that_ends_early_is_damage(tmp_path: Path, dicom: SimpleNamespace) -> None:
    content = image(dicom, tmp_path / "x.dcm").read_bytes()
    end = content.index(b"\x08\x00\x60\x00CS")
    (tmp_path / "x.dcm").write_bytes(content[:end] + b"\x08\x00\x15\x11SQ\0\0" + b"\xff" * 4)
    assert reason(tmp_path / "x.dcm") == "damaged DICOM header"


@pytest.mark.timeout(30)
def test_a_deflated_bomb_is_refused_unread(tmp_path: Path, dicom: SimpleNamespace) -> None:
    path = image(dicom, tmp_path / "x.dcm", DeflatedExplicitVRLittleEndian)
    content = path.read_bytes()
    start = 144 + struct.unpack_from("<I", content, 140)[0]
    bomb = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = bomb.compress(zlib.decompress(content[start:], -zlib.MAX_WBITS))
    zeros = bytes(1 << 24)
    body += b"".join(bomb.compress(zeros) for _ in range(70)) + bomb.flush()
    path.write_bytes(content[:start] + body)
    assert "decompression bomb" in reason(path)
    image(dicom, path, DeflatedExplicitVRLittleEndian)
    assert len(dicom.load(tmp_path)[0]) == 1
