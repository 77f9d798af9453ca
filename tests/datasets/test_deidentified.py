"""Nothing that tells who, where or when is in a data set: its bytes are searched for every such string of its sources.

Two searches, as random bytes hold any short string by chance. Words (of JSON, tar headers) for strings of four
characters and more; all bytes, and the decoded voxels and masks, for those of eight and more. Any case, UTF-8, UTF-16
and Latin-1.
"""

import json
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.dataset import Dataset

from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.readers import Scan
from scanfoundry.datasets.readers.dicom import identifying_strings
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.datasets.shards.writer import ShardWriter

dicom = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("readers") / "conftest.py")))
ENCODINGS = ("utf-8", "utf-16-le", "utf-16-be", "latin-1")
WIDTH = 8  # characters: small pixels hold any four digits as UTF-16
COMMON = re.compile(r"0*1?2?3?4?5?6?7?8?9?0?|(.)\1*")  # ramps and runs of digits, as pixels have them too
# What is random by construction; the search of all bytes covers it.
RANDOM = {"key", "patient", "also", "content", "foreground", "sha256", "index_sha256", "samples_sha256"}
PARAMETERS = {"sources_hash", "labels_hash", "site"}
CR, US = "1.2.840.10008.5.1.4.1.1.1", "1.2.840.10008.5.1.4.1.1.3.1"


def forms(strings: set[str]) -> dict[bytes, str]:
    """Every way in which a string may stand in bytes whose ASCII letters are lower case."""
    found = {}
    for each in strings:
        for spelling, encoding in product((each, each.lower(), each.upper()), ENCODINGS):
            try:
                found[spelling.encode(encoding).lower()] = each
            except UnicodeEncodeError:
                continue
    return found


def words_of(value: Any, name: str = "") -> Iterator[str]:
    """Keys, texts, and numbers of six digits and more, of parsed JSON."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield key
            yield from words_of(each, key)
    elif isinstance(value, list):
        for each in value:
            yield from words_of(each, name)
    elif isinstance(value, str) and name not in RANDOM | PARAMETERS:
        yield value
    elif isinstance(value, int) and value >= 100_000 and name not in ("offset", "length", "crc32", "bytes"):
        yield str(value)


def texts_of(out: Path) -> Iterator[str]:
    """All words of a data set: JSON in files and in tars, names and owners in tar headers."""
    for path in [*out.glob("*.json"), out / "manifest.json"]:
        yield from words_of(json.loads(path.read_bytes()))
    for path in out.glob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                yield from (re.sub(r"^[0-9a-f]{20}\.", "", member.name), member.uname, member.gname, member.linkname)
                yield from member.pax_headers
                stream = tar.extractfile(member)
                assert stream is not None
                assert (member.mtime, member.uname, member.gname) == (0, "", "")
                if member.name.endswith(".json"):
                    yield from words_of(json.loads(stream.read()))


def bytes_of(out: Path) -> Iterator[tuple[str, bytes]]:
    """All files but the site's own list, and every scan and mask decoded."""
    for path in sorted(out.iterdir()):
        if path.name != "quarantine.jsonl":
            yield path.name, path.read_bytes()
    data = DataSet(out)
    for shard in data.manifest.shards:
        reader = ShardReader(out, shard)
        for number, entry in enumerate(reader.entries):
            yield f"voxels of {entry.key}", reader.read(number).tobytes()
            if (mask := reader.read_mask(number)) is not None:
                yield f"mask of {entry.key}", mask.tobytes()


def holds(content: bytes, wanted: dict[bytes, str]) -> set[str]:
    """Which of the strings stand in `content`; not looked for are short ones, and those that pixels hold anyway."""
    lower = content.lower()
    by_start: dict[bytes, list[bytes]] = {}
    for form, each in wanted.items():
        if len(each) >= WIDTH and not COMMON.fullmatch(each):
            by_start.setdefault(form[:WIDTH], []).append(form)
    if len(lower) < WIDTH or not by_start:
        return set()
    windows = sliding_window_view(np.frombuffer(lower, np.uint8), WIDTH)
    pairs = windows[:, 0].astype(np.uint16) << 8 | windows[:, 1]
    begins = np.zeros(1 << 16, bool)
    begins[[int.from_bytes(start[:2]) for start in by_start]] = True
    met = {bytes(row) for row in np.unique(windows[begins[pairs]], axis=0)} & set(by_start)
    return {wanted[form] for start in met for form in by_start[start] if form in lower}


def leaks(out: Path, strings: set[str]) -> set[tuple[str, str]]:
    """(where, string) of everything that is found."""
    words = "\n".join(texts_of(out)).lower()
    wanted = forms(strings)
    found = {("words", each) for each in strings if each.lower() in words}
    return found | {(name, each) for name, content in bytes_of(out) for each in holds(content, wanted)}


def names_of(root: Path) -> set[str]:
    """Paths, and names of files and folders, of all that lies below `root`."""
    names = {str(root.resolve()), root.name}
    for path in root.rglob("*"):
        relative = path.relative_to(root)
        names |= {relative.as_posix(), path.name, path.stem} if path.is_file() else {path.name}
    return {name for name in names if len(name) >= 4 and not name.isdigit()}


def files_below(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory, write_key: Callable[[Path, str], Path]) -> Path:
    """Always the same: hashes that change hold other short strings by chance."""
    return write_key(tmp_path_factory.mktemp("key") / "site.key", "real archive")


def test_a_real_archive_leaves_no_trace(real_data: Path, key_file: Path, tmp_path: Path) -> None:
    mixed = real_data / "dicom_mixed"
    (tmp_path / "temporary").mkdir()
    command = [str(Path(sys.executable).with_name("scanfoundry")), "data", "build", str(mixed), "--max-bad", "1"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out"), "--key-file", str(key_file)],
        capture_output=True, text=True, env={"TMPDIR": str(tmp_path / "temporary"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert not list((tmp_path / "temporary").iterdir())
    strings = set().union(*(identifying_strings(path) for path in files_below(mixed)))
    assert len(strings) > 800
    # Two file names are words of every manifest ("sources", "labels_hash").
    assert not leaks(tmp_path / "out", strings | names_of(mixed) - {"SOURCE", "labels"})
    assert not [each for each in strings if each.lower() in done.stdout.lower()]
    reasons = "\n".join(line.reason for line in read_quarantine(tmp_path / "out") if line.kind != "duplicate")
    assert "radiotherapy dose map" in reasons
    assert not [each for each in strings if re.search(rf"\b{re.escape(each)}\b", reasons, re.IGNORECASE)]


# No two share a part of four letters.
NAMES = {
    "ISO_IR 100": ("Mößmann-Käsbohrer^Björk", "latin-1"),
    "ISO_IR 192": ("Журавлёва^Аграфена", "utf-8"),
    "ISO_IR 144": ("Чебурашкин^Порфирий", "iso-8859-5"),
    "GB18030": ("欧阳娜娜^端木赐香", "gb18030"),
    "\\ISO 2022 IR 87": ("Yamagishi^Tarouemon=山岸源五郎^太郎右衛門", "iso2022_jp"),
}
TEXTS = {
    "PatientID": "QX-771904", "PatientBirthDate": "19310412", "StudyDate": "20130926", "StudyTime": "143337",
    "InstitutionName": "Klinikum Zwiebelstadt", "InstitutionAddress": "Fliederhof 99", "StationName": "WKSTN7731",
    "ReferringPhysicianName": "Vandersloot^Hieronymus", "OperatorsName": "Obermoser^Kunigunde",
    "AccessionNumber": "ACC5550199", "StudyID": "STD82310", "DeviceSerialNumber": "SN9920441",
    "PatientComments": "neighbour of Zaphod Beeblebrox", "ImageComments": "seen by Schwester Gunhilde",
    "StudyDescription": "head of Wolpertinger junior", "SeriesDescription": "for Doctor Fuchsbichler",
    "ProtocolName": "Hinkelstein protocol", "PatientAddress": "Eulengasse 12b", "OtherPatientIDs": "ALT-66012",
    "MedicalRecordLocator": "SHELF-4410", "EthnicGroup": "Marsbewohner", "Occupation": "Leuchtturmwart",
    "SoftwareVersions": "release of Trudering", "ManufacturerModelName": "Skyra of Fliederhof 99",
    "BodyPartExamined": "HEAD QX-771904",
}  # fmt: skip
HIDDEN = {
    "private": "privately Xanthippe", "nested": "nested Nebukadnezar", "curve": "curve of Rumpelstilz",
    "overlay": "overlay of Ottokarius", "excess": "behind pixels Kuckucksei", "icon": "icon of Iphigenie",
}  # fmt: skip
FOLDER, FILE = "Haselnussstrauch Eberhardine", "Kirschkernspucker_1931"


def planted(charset: str) -> dict[str, Any]:
    """Header values that tell everything."""
    name, _ = NAMES[charset]
    values: dict[str, Any] = {"SpecificCharacterSet": charset.split("\\"), "PatientName": name, **TEXTS}
    return values | {"Manufacturer": "SIEMENS", "StudyInstanceUID": "1.2.77.515151", "SeriesInstanceUID": "1.2.77.616"}


def hide(path: Path, image: bool) -> None:
    """Texts where no reader should look."""
    dataset = pydicom.dcmread(path)
    block = dataset.private_block(0x0029, "SIEMENS CSA HEADER", create=True)
    block.add_new(0x10, "OB", HIDDEN["private"].encode() + b" ")
    inner = Dataset()
    inner.PatientName, inner.PatientID = HIDDEN["nested"], "QX-771904"
    dataset.ReferencedPatientSequence = [inner]
    dataset.add_new(0x50003000, "OB", HIDDEN["curve"].encode())
    dataset.add_new(0x60000022, "LO", HIDDEN["overlay"])
    icon = Dataset()
    icon.BitsAllocated = 8
    icon.PixelData = HIDDEN["icon"].encode() + b" "
    dataset.IconImageSequence = [icon]
    if image:
        dataset.add_new(0x60003000, "OB", HIDDEN["overlay"].encode() + b" ")
        dataset.PixelData = bytes(dataset.PixelData) + HIDDEN["excess"].encode() * 4
    dataset.save_as(path)


@pytest.fixture(scope="module")
def ward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CT per character set, an X-ray and a cine, a NIfTI and a PNG, with planted texts everywhere."""
    root = tmp_path_factory.mktemp("ward") / FOLDER
    for number, charset in enumerate(NAMES):
        places = [(0.0, 0.0, 2.0 * k) for k in range(4)]
        values = planted(charset) | {"SeriesInstanceUID": f"1.2.77.616.{number}", "PatientID": f"QX-771904{number}"}
        pixels = {"pixels": lambda k, number=number: dicom.texture(40, 36, k + 9 * number)}
        for path in dicom.slices(root / f"{FILE} {number}", places, **pixels, **values):
            hide(path, image=False)
    for name, sop_class, frames in (("a", CR, ()), ("b", US, (3,))):
        dataset = dicom.header(**planted("ISO_IR 192") | {"SOPClassUID": sop_class, "Modality": "OT"})
        textures = np.stack([dicom.texture(30, 44, k) for k in range(*frames or (1,))])
        dicom.put_pixels(dataset, textures if frames else textures[0])
        hide(dicom.save(dataset, root / f"{FILE}_{name}"), image=True)
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (9, 9, 9)).astype(np.int16), np.eye(4))
    image.header["descrip"], image.header["db_name"] = "Mnemosyne of Delphi", "Aristophanes"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"Persephone was here"))
    nib.save(image, root / f"{FILE}.nii.gz")
    info = PngInfo()
    info.add_text("Author", "Theophrastus Bombast")
    Image.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(root / f"{FILE}.png", pnginfo=info)
    return root


def telling(root: Path) -> set[str]:
    """All that was planted below `root`, and every part of it by itself."""
    strings = {*TEXTS.values(), *HIDDEN.values(), "1.2.77.515151", "1.2.77.616", "K-4711", "20130926143337"}
    strings |= {"Mnemosyne of Delphi", "Aristophanes", "Persephone was here", "Theophrastus Bombast"}
    strings |= {part for name, _ in NAMES.values() for part in re.split(r"[\^=]", name)}
    strings |= set().union(*(identifying_strings(path) for path in files_below(root)))
    parts = {part for each in strings for part in re.split(r"[ ^]", each) if len(part) > 5 and not part.islower()}
    return strings | parts | names_of(root)


def test_planted_strings_are_in_the_sources(ward: Path) -> None:
    content = b"".join(path.read_bytes() for path in files_below(ward))
    for each in {*TEXTS.values(), *HIDDEN.values()} - {"SIEMENS"}:
        assert each.encode() in content, each
    for charset, (name, encoding) in NAMES.items():
        assert re.split(r"[\^=]", name)[0].encode(encoding) in content, charset
    assert len(telling(ward)) > 100


def test_planted_strings_do_not_travel(ward: Path, key_file: Path, tmp_path: Path) -> None:
    summary = build([ward], tmp_path / "out", BuildOptions(key_file=key_file, workers=1))
    assert (summary.scans, summary.quarantined, summary.ignored) == (9, {}, {})
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "manifest.json", "near_duplicates.csv", "quarantine.jsonl", "samples.npy", "shard-000000.idx.json",
        "shard-000000.tar", "sources.npy",
    ]  # fmt: skip
    assert not leaks(tmp_path / "out", telling(ward))
    # The header's other facts do: an empty shard would pass too.
    (shard,) = DataSet(tmp_path / "out").manifest.shards
    assert shard.modalities == {"ct": 5, "ot": 2, "unknown": 2}
    assert {e.facts.get("manufacturer") for e in DataSet(tmp_path / "out").index(shard).samples} == {"siemens", None}


def test_identity_columns_and_mask_headers_do_not_travel(ward: Path, key_file: Path, tmp_path: Path) -> None:
    rows = ["x.nii.gz,Quastenflosser Ida,MRN-40404,1931-04-12,Zwiebelstadt,benign,61"]
    table = "\n".join(["file,patient_name,mrn,birth_date,hospital,diagnosis,age", *rows])
    (tmp_path / "list.csv").write_text(table)
    (tmp_path / "masks").mkdir()
    (tmp_path / "scans").mkdir()
    shutil.copyfile(ward / f"{FILE}.nii.gz", tmp_path / "scans" / "x.nii.gz")
    mask = nib.Nifti1Image(np.eye(9, dtype=np.uint8)[..., None].repeat(9, 2), np.eye(4))
    mask.header["descrip"] = "drawn by Eulenspiegel"
    nib.save(mask, tmp_path / "masks" / "x.nii.gz")
    options = BuildOptions(
        key_file=key_file, workers=1, labels=[tmp_path / "list.csv"], label_columns=["age"],
        masks=[tmp_path / "masks"], boxes_from_masks=True,
    )  # fmt: skip
    summary = build([tmp_path / "scans"], tmp_path / "out", options)
    told = {"Quastenflosser", "MRN-40404", "1931-04-12", "Zwiebelstadt", "Eulenspiegel", "birth_date", "hospital"}
    assert not leaks(tmp_path / "out", told | telling(ward))
    (left,) = [note for note in summary.notes if "left out" in note]
    assert left.endswith("--label-columns: 'patient_name', 'mrn', 'birth_date', 'hospital'")
    entries = DataSet(tmp_path / "out").index(DataSet(tmp_path / "out").manifest.shards[0]).samples
    (labelled,) = entries
    assert labelled.labels is not None
    assert (labelled.labels.classes, labelled.labels.targets) == ({"diagnosis": "benign"}, {"age": 61.0})
    assert labelled.mask is not None


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_does_leak_is_found(ward: Path, key_file: Path, tmp_path: Path, encoding: str) -> None:
    """The searches themselves: a text in the voxels, in a fact, and behind a tar's end."""
    secret = "Käsbohrer" if encoding != "utf-16-be" else "Beeblebrox"
    text = np.frombuffer((secret.upper() * 20).encode(encoding)[:128], np.uint8)
    voxels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64)
    voxels[10:12] = text.reshape(2, 64)
    scan = Scan(voxels[None, None], (1.0, 1.0, 1.0), facts={"model": secret})
    build([ward / f"{FILE}.png"], tmp_path / "out", BuildOptions(key_file=key_file, workers=1))
    assert not leaks(tmp_path / "out", {secret})
    out = shutil.copytree(tmp_path / "out", tmp_path / "planted")
    (shard,) = out.glob("*.tar")
    with ShardWriter(shard, "zstd") as writer:
        writer.add(scan, "0" * 20, "xr", "0" * 32)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][0] |= writer.record.model_dump()
    (out / "manifest.json").write_text(json.dumps(manifest))
    assert {where for where, _ in leaks(out, {secret})} >= {"words", f"voxels of {'0' * 20}", shard.name}
