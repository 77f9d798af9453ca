"""A survey in portions finds what one look at all headers finds, keeps it for the next start, and holds little."""

import json
import os
import runpy
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery import scan_headers as module
from scanfoundry.datasets.discovery import survey
from scanfoundry.datasets.discovery.scan_headers import find_dicom
from scanfoundry.datasets.readers import list_files
from scanfoundry.datasets.readers.dicom.headers import parse
from scanfoundry.datasets.readers.listing import FileListing, PackedNames

dicom = SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[1] / "readers" / "conftest.py")))


def stack(count: int) -> list[tuple[float, float, float]]:
    return [(0.0, 0.0, 4.0 * number) for number in range(count)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Series over several folders, copies, slices without a series, a text, a damaged file, a link to nowhere."""
    root = tmp_path_factory.mktemp("mixed")
    for number in range(4):
        place = {"SeriesInstanceUID": f"1.2.{number}", "StudyInstanceUID": f"1.3.{number // 2}"}
        files = dicom.slices(root / f"a{number}", stack(9), **place)
        (root / "b").mkdir(exist_ok=True)
        for file in files[5:]:  # the rest of each series lies with that of others
            file.rename(root / "b" / f"{number}-{file.name}")
    (root / "z").mkdir()
    shutil.copy(root / "a1" / files[0].name, root / "z" / "copy.dcm")
    dicom.slices(root / "c" / "one", stack(3), SeriesInstanceUID=None)
    dicom.slices(root / "c" / "two", stack(3), SeriesInstanceUID=None)
    (root / "z" / "notes.txt").write_text("see report")
    (root / "z" / "cut.dcm").write_bytes((root / "a0" / files[0].name).read_bytes()[:300])
    (root / "z" / "gone.dcm").symlink_to(root / "nowhere.dcm")
    return root


def surveyed(root: Path, kept: Path, monkeypatch: pytest.MonkeyPatch, share: float = 0.0) -> tuple[list, list]:
    """By portions of 4 files, grouped in parts of about 10."""
    for where in (module, survey):
        monkeypatch.setattr(where, "PORTION", 4)
    monkeypatch.setattr(survey, "_TOGETHER", 10)
    told: list[int] = []
    others = list_files([root])[1].below(root)
    found = find_dicom(root, others, 2, lambda what, done, total: told.append(done), kept, share)
    assert told[-1] == len(others)
    return found


def ordered(lines: list) -> list:
    return sorted(lines, key=lambda line: (line.path, line.reason))


def test_the_same_as_one_look_at_all_headers(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find_dicom(mixed, list_files([mixed])[1].below(mixed), 1, lambda *told: None)
    assert [len(source.files) for source in expected[0]].count(9) == 4
    assert len(expected[1]) == 4
    for share in (0.0, 0.6):
        sources, none = surveyed(mixed, tmp_path / str(share), monkeypatch, share)
        assert sources == expected[0]
        assert ordered(none) == ordered(expected[1])
    parts = {int(part) for path in (tmp_path / "0.0").glob("*.headers") for part in head(path)["pieces"]}
    assert len(parts) > 2, "all in one part"


def head(path: Path) -> dict:
    content = path.read_bytes()
    return json.loads(zlib.decompress(content[8 : 8 + int.from_bytes(content[:8], "little")]))


def test_a_restart_reads_only_what_changed(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(shutil.copytree(mixed, tmp_path / "in", symlinks=True))
    kept = tmp_path / "kept"
    kept.mkdir()
    read: list[Path] = []
    scan = parse.scan_headers

    def noted(paths: Iterable[Path]) -> list:
        given = list(paths)
        read.extend(given)
        return scan(given)

    monkeypatch.setattr(parse, "scan_headers", noted)

    def again() -> list[str]:
        read.clear()
        for portion in survey.portions(root, list_files([root])[1].below(root), kept, 0.0):
            portion.run()
        return sorted(path.name for path in read)

    monkeypatch.setattr(survey, "PORTION", 4)
    assert len(again()) == len(list_files([root])[1]) - 1  # but for the link to nowhere
    assert again() == []
    file = next(iter((root / "c" / "one").iterdir()))
    os.utime(file, ns=(1, 1))
    assert file.name in again()
    assert again() == []
    damaged = next(iter(kept.glob("*.headers")))
    damaged.write_bytes(b"cut")
    assert len(again()) in range(1, 5)


def test_a_worker_that_dies_names_the_folder(mixed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FACTORY", "kills:worker_that_dies")
    with pytest.raises(UserError, match=r"reads DICOM headers in .*mixed.* died \(exit status 7\)"):
        surveyed(mixed, tmp_path / "kept", monkeypatch)


def test_names_of_a_long_series_are_packed() -> None:
    names = tuple(f"patient/series/IM{number:05d}" for number in range(1000))
    packed = PackedNames(names)
    assert packed == names
    assert packed == PackedNames(names)
    assert (packed[0], packed[-1], packed[1:3], len(packed)) == (names[0], names[-1], names[1:3], 1000)
    assert hash(packed) == hash(names)
    assert len(packed._packed) < 10 * 1000


def test_a_listing_holds_each_file_once(tmp_path: Path) -> None:
    listing = FileListing()
    listing.add_folder(tmp_path, "a", ["2", "1"])
    listing.add(tmp_path, "b")
    listing.add_folder(tmp_path, "a", ["2", "3"])  # another input holds the folder too
    assert list(listing) == [(tmp_path, "b"), (tmp_path, "a/1"), (tmp_path, "a/2"), (tmp_path, "a/3")]
    assert (len(listing), len(listing.below(tmp_path)), "a/3" in listing.below(tmp_path)) == (4, 4, True)
    assert list(listing.kept(lambda root, name: name != "a/2").below(tmp_path)) == ["b", "a/1", "a/3"]


def test_names_that_are_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File names are bytes: those of old systems are often not UTF-8."""
    files = dicom.slices(tmp_path / "in", stack(9))
    for number, file in enumerate(files):
        os.rename(file, os.fsencode(file.parent) + b"/\xe4" + str(number).encode())
    expected = find_dicom(tmp_path / "in", list_files([tmp_path / "in"])[1].below(tmp_path / "in"), 1, print)
    sources, none = surveyed(tmp_path / "in", tmp_path / "kept", monkeypatch)
    assert (sources, none) == expected
    assert all(path.exists() for path in sources[0].paths)
