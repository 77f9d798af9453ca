"""Scanning headers and grouping files: what is DICOM, what belongs together, and that no file is lost."""

import contextlib
import gzip
import os
import pickle
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import (
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    MediaStorageDirectoryStorage,
)

from scanfoundry.datasets.readers.dicom import group, read_image, read_volume, scan_headers
from scanfoundry.datasets.readers.dicom.headers.identity import is_dummy
from scanfoundry.datasets.readers.scan import ReadError

STORAGE = "1.2.840.10008.5.1.4.1.1."


def files_of(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def grouped(root: Path) -> tuple[list, dict[str, tuple[str, str]]]:
    """Sources and refusals of every file below `root`; each file must be in one of them, once."""
    files = files_of(root)
    sources, refusals = group(scan_headers(files), root)
    named = [name for source in sources for name in source.files] + [name for name, _, _ in refusals]
    assert sorted(named) == [file.relative_to(root).as_posix() for file in files]
    return sources, {name: (reason, kind) for name, reason, kind in refusals}


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_dicom_without_preamble_meta_and_ending(tmp_path: Path, dicom: SimpleNamespace, syntax: str) -> None:
    dataset = dicom.header(SOPClassUID=STORAGE + "1", Modality="CR")
    dicom.put_pixels(dataset, dicom.texture(20, 30, 0))
    dicom.save(dataset, tmp_path / "IM1", syntax, bare=True)
    (found,) = scan_headers([tmp_path / "IM1"])
    assert (found.state, found.modality, found.rows, found.columns) == ("dicom", "CR", 20, 30)
    assert found.pixel_length == 1200
    assert found.size == found.pixel_offset + 1200
    (source,), _ = grouped(tmp_path)
    assert (source.kind, source.patient) == ("dicom-image", "K-4711")


@pytest.mark.parametrize(
    "content",
    [b"", b"\0", b"text of a reading" * 9, b'{"00080005": {"vr": "CS"}}', gzip.compress(b"DICM" * 99, mtime=0),
     bytes(4000), b"\x89PNG\r\n\x1a\n" + bytes(200), b"\x5c\x01\0\0" + bytes(400), b"\xff\xd8\xff\xe0" + bytes(200),
     bytes(128) + b"DIC", b"\x08\0\x05\0" + b"x" * 300],
)  # fmt: skip
def test_other_files_are_not_taken_for_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "a.dcm").write_bytes(content)
    sources, refusals = grouped(tmp_path)
    assert sources == []
    assert refusals["a"] == ("not DICOM", "skipped")
    assert refusals["a.dcm"] == ("named as DICOM, but there is no DICOM header at its start", "refused")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(junk=st.binary(max_size=600), preamble=st.booleans())
def test_no_bytes_make_the_scan_of_headers_raise(junk: bytes, preamble: bool) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x.dcm").write_bytes(bytes(128) + b"DICM" + junk if preamble else junk)
        sources, refusals = grouped(Path(folder))
        assert len(sources) + len(refusals) == 1


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damage_anywhere_loses_no_file_and_raises_nothing_else(dicom: SimpleNamespace, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (path,) = dicom.slices(Path(folder), [(0.0, 0.0, 0.0)], SOPInstanceUID="1.2.3")
        content = bytearray(path.read_bytes())
        for _ in range(data.draw(st.integers(1, 6))):
            content[data.draw(st.integers(0, 900))] = data.draw(st.integers(0, 255))
        path.write_bytes(content[: data.draw(st.integers(1, 4000))])
        for source in grouped(Path(folder))[0]:
            with contextlib.suppress(ReadError):
                assert list({"dicom-volume": read_volume, "dicom-image": read_image}[source.kind](source))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    plan=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 6), st.booleans(), st.sampled_from("CPUL")),
        min_size=1,
        max_size=14,
    )
)
def test_every_file_is_in_one_source_or_refusal(dicom: SimpleNamespace, plan: list) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number, (series, place, instance, anonymous, sort) in enumerate(plan):
            values = {
                "SeriesInstanceUID": f"1.2.{series}",
                "SOPInstanceUID": f"1.2.{series}.{instance}",
                "PatientID": "" if anonymous else "P-88",
                "ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER" if sort == "L" else "AXIAL"],
            }
            written = dicom.slices(root / f"{place}", [(0.0, 0.0, 2.0 * instance)], **values)
            if sort == "P":  # pixels gone
                written[0].write_bytes(written[0].read_bytes()[:-2890])
            written[0].rename(root / f"{place}" / f"{number}")
        sources, _ = grouped(root)
        assert len({source.identity for source in sources}) == len(sources)


def test_what_holds_no_image_is_skipped_with_what_it_is(tmp_path: Path, dicom: SimpleNamespace) -> None:
    kinds = {
        "88.33": ("SR", "structured report"), "11.1": ("PR", "presentation state"), "104.1": ("DOC", "encapsulated"),
        "9.1.1": ("ECG", "waveform"), "481.5": ("RTPLAN", "plan"), "481.3": ("RTSTRUCT", "contours"),
        "66.1": ("REG", "registration"), "88.59": ("KO", "report"), "66.4": ("SEG", "labels"),
    }  # fmt: skip
    for end, (modality, _) in kinds.items():
        dicom.save(dicom.header(SOPClassUID=STORAGE + end, Modality=modality), tmp_path / end)
    dicom.save(dicom.header(SOPClassUID=MediaStorageDirectoryStorage), tmp_path / "DICOMDIR")
    dicom.save(dicom.header(), tmp_path / "stripped")
    sources, refusals = grouped(tmp_path)
    assert sources == []
    for end, (_, word) in kinds.items():
        assert word in refusals[end][0]
        assert refusals[end][1] == "skipped"
    assert refusals["DICOMDIR"] == ("DICOMDIR: a directory of other files", "skipped")
    assert refusals["stripped"] == ("no pixel data found: none stored, or the header is cut or damaged", "refused")


def test_series_in_nested_folders_copies_and_localisers(tmp_path: Path, dicom: SimpleNamespace) -> None:
    files = dicom.slices(tmp_path / "a", [(0.0, 0.0, 2.0 * k) for k in range(6)])
    (tmp_path / "b" / "c").mkdir(parents=True)
    files[4].rename(tmp_path / "b" / "c" / "X4")
    (tmp_path / "b" / "copy").write_bytes(files[2].read_bytes())
    files[2].write_bytes(files[2].read_bytes()[:-100])  # the first in order is the damaged one
    dicom.slices(tmp_path / "d", [(0.0, 0.0, 0.0)], ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    (source,), refusals = grouped(tmp_path)
    assert source.kind == "dicom-volume"
    assert source.files == ("a/0000.dcm", "a/0001.dcm", "b/copy", "a/0003.dcm", "b/c/X4", "a/0005.dcm")
    assert refusals == {
        "a/0002.dcm": ("another file holds the same instance: b/copy", "skipped"),
        "d/0000.dcm": ("localiser: for planning, not a scan", "skipped"),
    }
    assert source.size == sum((tmp_path / name).stat().st_size for name in source.files)


def test_one_identity_wherever_the_files_lie(tmp_path: Path, dicom: SimpleNamespace) -> None:
    files = dicom.slices(tmp_path / "a", [(0.0, 0.0, 2.0 * k) for k in range(3)])
    (tmp_path / "other" / "x").mkdir(parents=True)
    for file in files:
        (tmp_path / "other" / "x" / file.name).write_bytes(file.read_bytes())
    (here,), _ = grouped(tmp_path / "a")
    (there,), _ = grouped(tmp_path / "other")
    assert here.identity == there.identity
    assert here.patient == there.patient == "K-4711"


def test_files_that_share_a_uid_but_no_shape_are_no_copies(tmp_path: Path, dicom: SimpleNamespace) -> None:
    for rows in (20, 30):
        dataset = dicom.header(SOPClassUID=STORAGE + "1", Modality="CR", SOPInstanceUID="1.2.3")
        dicom.put_pixels(dataset, dicom.texture(rows, 20, 0))
        dicom.save(dataset, tmp_path / f"{rows}")
    sources, refusals = grouped(tmp_path)
    assert (len(sources), refusals) == (2, {})
    assert sources[0].identity != sources[1].identity


def test_series_without_any_uid_are_told_apart_by_folder(tmp_path: Path, dicom: SimpleNamespace) -> None:
    for folder in "ab":
        dicom.slices(tmp_path / folder, [(0.0, float(ord(folder)), 2.0 * k) for k in range(4)], SeriesInstanceUID="")
    sources, _ = grouped(tmp_path)
    assert [len(source.files) for source in sources] == [4, 4]


def test_patients_are_kept_apart_within_one_series(tmp_path: Path, dicom: SimpleNamespace) -> None:
    positions = [(0.0, 0.0, 2.0 * k) for k in range(4)]
    dicom.slices(tmp_path / "a", positions)
    dicom.slices(tmp_path / "b", positions, PatientID="K-4712")
    sources, _ = grouped(tmp_path)
    assert [source.patient for source in sources] == ["K-4711", "K-4712"]


@pytest.mark.parametrize(
    "name", ["", "0", "000", "ANONYMOUS", "anonymized", "***", "XXXX", "xx", "1111", "123456", "-"]
)
def test_dummies_are_no_patients(name: str) -> None:
    assert is_dummy(name)


@pytest.mark.parametrize("name", ["1", "7", "12", "PGBM-001", "anon12", "20011", "crlab", "1CT1", "98890234"])
def test_pseudonyms_are_patients(name: str) -> None:
    assert not is_dummy(name)


def test_without_an_id_the_study_stands_for_the_patient(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dicom.slices(tmp_path / "a", [(0.0, 0.0, 0.0)], PatientID="ANONYMOUS")
    dicom.slices(tmp_path / "b", [(0.0, 0.0, 0.0)], PatientID="", StudyInstanceUID="")
    sources, _ = grouped(tmp_path)
    assert [source.patient for source in sources] == ["1.2.826.0.1.77.1", None]


def test_headers_travel_between_processes(tmp_path: Path, dicom: SimpleNamespace) -> None:
    files = dicom.slices(tmp_path, [(0.0, 0.0, 2.0 * k) for k in range(3)], syntax=JPEG2000Lossless)
    with ProcessPoolExecutor(1) as pool:
        (there,) = pool.map(scan_headers, [files])
    assert there == scan_headers(files)
    assert pickle.loads(pickle.dumps(there)) == there


def test_a_file_that_cannot_be_opened_is_refused(tmp_path: Path, dicom: SimpleNamespace) -> None:
    os.symlink(tmp_path / "nowhere", tmp_path / "broken.dcm")
    _, refusals = group(scan_headers([tmp_path / "broken.dcm"]), tmp_path)
    assert refusals == [("broken.dcm", "the file cannot be opened", "refused")]


def test_single_slices_and_colour_are_images(tmp_path: Path, dicom: SimpleNamespace) -> None:
    dicom.slices(tmp_path / "one", [(0.0, 0.0, 0.0)])
    dataset = dicom.header(SOPClassUID=STORAGE + "7", Modality="OT")
    dicom.put_pixels(dataset, np.zeros((5, 6, 3), np.uint8))
    dicom.save(dataset, tmp_path / "capture")
    sources, _ = grouped(tmp_path)
    assert [source.kind for source in sources] == ["dicom-image", "dicom-image"]
