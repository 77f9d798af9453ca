"""A build that keeps JPEG files holds the same scans as one of voxels, in whatever way it comes about."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset  # noqa: F401 (imported here, so that no forked child has to)
from kills import dies_at, write_here
from PIL import Image
from streams import stream

from scanfoundry.configs.errors import UserError
from scanfoundry.configs.files import write_bytes
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.datasets.readers import read
from scanfoundry.datasets.shards import prepare
from scanfoundry.datasets.shards.build import BuildOptions, append, build, build_part
from scanfoundry.datasets.shards.build_plan import Part
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.format import MANIFEST, SampleEntry
from scanfoundry.datasets.shards.merge import merge
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.datasets.shards.resume import BUILD
from scanfoundry.datasets.shards.shard_worker import PARTIAL

NAME = "Meier^Anna"


def picture(rng: np.random.Generator, channels: int = 3) -> Image.Image:
    coarse = rng.integers(0, 200, (6, 6, channels)).repeat(8, 0).repeat(8, 1)
    pixels = (coarse + rng.integers(0, 40, (48, 48, channels))).astype(np.uint8)
    return Image.fromarray(pixels if channels == 3 else pixels[..., 0])


def exif(orientation: int) -> bytes:
    known = Image.Exif()
    known[0x0112], known[0x013B] = orientation, NAME
    return known.tobytes()


@pytest.fixture(autouse=True)
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "run_tasks", write_here)


@pytest.fixture(scope="module", autouse=True)
def of_module() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "run_tasks", write_here)
        yield


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In `images`: 8 colours, 8 greys, 8 greys saved as colour, 4 progressive, one turned by EXIF, a copy of a colour
    with other metadata, a CMYK and a PNG; all JPEG files with a name in EXIF, comment and behind the image. In
    `masks`: of the colours."""
    root, rng = tmp_path_factory.mktemp("inputs"), np.random.default_rng(0)
    (root / "images").mkdir()
    (root / "masks").mkdir()

    def save(name: str, image: Image.Image, orientation: int = 1, **options: object) -> None:
        path = root / "images" / f"{name}.jpg"
        image.save(path, exif=exif(orientation), comment=NAME, icc_profile=NAME.encode(), **options)
        path.write_bytes(path.read_bytes() + NAME.encode())

    for number in range(8):
        save(f"colour{number}", picture(rng), quality=85)
        mask = Image.fromarray(rng.integers(0, 3, (48, 48)).astype(np.uint8))
        mask.save(root / "masks" / f"colour{number}.png")
        save(f"grey{number}", picture(rng, 1), restart_marker_rows=1)
        save(f"x-ray{number}", picture(rng, 1).convert("RGB"), quality=60)
    for number in range(4):
        save(f"progressive{number}", picture(rng), progressive=True)
    save("turned", picture(rng), orientation=6)
    picture(rng).convert("CMYK").save(root / "images" / "cmyk.jpg")
    picture(rng).save(root / "images" / "other.png")
    first = (root / "images" / "colour0.jpg").read_bytes()
    (root / "images" / "copy.jpg").write_bytes(first.replace(NAME.encode(), b"Mueller^Jo"))
    return root


@pytest.fixture(scope="module")
def options(inputs: Path, fixed_key: Callable[[str], Path]) -> BuildOptions:
    return BuildOptions(key_file=fixed_key("jpeg"), shard_mb=0.02, workers=1, modality="xr", masks=[inputs / "masks"])


@pytest.fixture(scope="module")
def keeping(options: BuildOptions) -> BuildOptions:
    return options.model_copy(update={"keep_jpeg": True})


@pytest.fixture(scope="module")
def plain(inputs: Path, options: BuildOptions, of_module: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "out"
    build([inputs / "images"], out, options)
    return out


@pytest.fixture(scope="module")
def kept(inputs: Path, keeping: BuildOptions, of_module: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kept") / "out"
    summary = build([inputs / "images"], out, keeping)
    assert "29 JPEG files are kept as JPEG, without metadata" in summary.notes
    assert "1 JPEG files are stored as voxels: turned by EXIF, or unusual in their coding" in summary.notes
    assert (summary.quarantined["refused"], summary.quarantined["duplicate"]) == (1, 1)
    return out


def entries_of(folder: Path) -> list[SampleEntry]:
    data = DataSet(folder)
    return [entry for shard in data.manifest.shards for entry in data.index(shard).samples]


def voxels_of(folder: Path) -> dict[str, np.ndarray]:
    data, found = DataSet(folder), {}
    for shard in data.manifest.shards:
        reader = ShardReader(folder, shard)
        found |= {entry.key: reader.read(number) for number, entry in enumerate(reader.entries)}
    return found


def test_the_scans_are_the_same(plain: Path, kept: Path, inputs: Path) -> None:
    one, other = DataSet(plain), DataSet(kept)
    assert len(one.manifest.shards) >= 3
    assert (one.manifest.version, other.manifest.version) == (2, 3)
    assert np.array_equal(one.samples(), other.samples())
    where = {"offset", "length", "crc32", "stored", "levels", "rows", "jpeg", "mask", "blocks"}
    for a, b in zip(entries_of(plain), entries_of(kept), strict=True):
        assert a.model_dump(exclude=where) == b.model_dump(exclude=where)
    voxels = voxels_of(kept)
    for key, expected in voxels_of(plain).items():
        assert np.array_equal(voxels[key], expected)
        assert (voxels[key].dtype, voxels[key].flags.writeable) == (expected.dtype, True)
    wanted = [scan.voxels for name in ("x-ray1", "colour3") for scan in read(inputs / "images" / f"{name}.jpg")]
    assert any(np.array_equal(each, wanted[0][:1]) for each in voxels.values())
    assert any(np.array_equal(each, wanted[1]) for each in voxels.values())


def test_which_stay_jpeg(kept: Path, inputs: Path) -> None:
    entries = entries_of(kept)
    assert sum(entry.jpeg is not None for entry in entries) == 28  # the copy is a duplicate
    assert sum(entry.jpeg is not None and entry.shape[0] == 1 for entry in entries) == 16
    assert sum(entry.mask is not None and entry.jpeg is not None for entry in entries) == 8
    report = check(kept)
    assert report.modalities["xr"].dtypes == {"uint8": 2, "uint8 as JPEG": 28}
    assert report.labels["mask"] == 8


def test_nothing_of_the_metadata_is_stored(kept: Path, contents: Callable) -> None:
    for name, content in contents(kept).items():
        assert name == "quarantine.jsonl" or not any(word in content for word in (b"Meier", b"Mueller", b"Exif"))


def test_masks_and_parts_of_images(plain: Path, kept: Path) -> None:
    region = (slice(0, 1), slice(5, 17), slice(20, 48))
    for a, b in zip(DataSet(plain).manifest.shards, DataSet(kept).manifest.shards, strict=True):
        one, other = ShardReader(plain, a), ShardReader(kept, b)
        for number, entry in enumerate(other.entries):
            masks = one.read_mask(number), other.read_mask(number)
            assert (masks[0] is None) == (masks[1] is None)
            assert masks[0] is None or np.array_equal(*masks)
            expected = one.read(number, region)
            assert np.array_equal(other.read(number, region), expected)
            for kind in (np.uint8, np.float32):
                out = np.zeros((entry.shape[0], 1, 12, 28), kind)
                other.read_into(number, region, out)
                assert np.array_equal(out, expected)


@pytest.mark.parametrize(
    "changes",
    [{}, {"channels": 3, "workers": 1}, {"positives": "crops", "batch_2d": 4}],
    ids=["one channel", "three channels, a worker", "pairs"],
)
def test_streams_are_equal(plain: Path, kept: Path, changes: dict[str, object]) -> None:
    found = []
    for folder in (plain, kept):
        given = {"sources": [{"name": "x", "path": folder}], "crop_2d": (24, 32), "batch_2d": 6, "workers": 0}
        with CropLoader(DataConfig(**(given | changes)), seed=3) as loader:
            found.append(stream(loader, 12))
    assert found[0] == found[1]


def test_parts_and_kills_give_the_same_bytes(
    inputs: Path, keeping: BuildOptions, kept: Path, tmp_path: Path, contents: Callable
) -> None:
    out, kills = tmp_path / "out", 0
    for part, steps in ((Part(2, 2), (1, 4, 9)), (Part(1, 2), (3, 7))):
        for step in steps:
            kills += dies_at(step, lambda: build_part([inputs / "images"], out, keeping, part))  # noqa: B023
        build_part([inputs / "images"], out, keeping, part)
    for step in (1, 6, 12):
        kills += dies_at(step, lambda: merge([out], out))
    notes = merge([out], out).notes
    assert "29 JPEG files are kept as JPEG, without metadata" in notes
    assert contents(out) == contents(kept)
    assert kills >= 6


@pytest.mark.parametrize("first", [True, False])
def test_the_option_cannot_change_within_a_build(
    inputs: Path, options: BuildOptions, tmp_path: Path, first: bool
) -> None:
    out = tmp_path / "out"
    build_part([inputs / "images"], out, options.model_copy(update={"keep_jpeg": first}), Part(1, 2))
    with pytest.raises(UserError, match="was begun with another value of --keep-jpeg"):
        build_part([inputs / "images"], out, options.model_copy(update={"keep_jpeg": not first}), Part(2, 2))


@pytest.mark.parametrize("keep", [True, False])
def test_an_append_finds_what_was_stored_otherwise(
    plain: Path, kept: Path, options: BuildOptions, tmp_path: Path, keep: bool
) -> None:
    """The hash of a scan is of its voxels: a JPEG is the duplicate of a frame, and the other way round."""
    out = Path(shutil.copytree(plain if keep else kept, tmp_path / "out"))
    new, rng = tmp_path / "new", np.random.default_rng(1)
    new.mkdir()
    picture(rng).save(new / "new.jpg")
    again = picture(np.random.default_rng(0))  # the first that the inputs drew
    again.save(new / "again.jpg", quality=85)
    summary = append([new], out, options.model_copy(update={"keep_jpeg": keep, "masks": []}))
    assert (summary.scans, summary.quarantined["duplicate"]) == (31, 2)
    assert check(out).duplicates == 0
    assert entries_of(out)[-1].jpeg is not None if keep else entries_of(out)[-1].jpeg is None
    assert DataSet(out).manifest.version == 3


def older(folder: Path) -> None:
    """Make a data set, or what was begun of one, as versions wrote it that did not know of equal channels."""
    path = folder / MANIFEST
    path = path if path.exists() else folder / PARTIAL / BUILD
    content = json.loads(path.read_bytes())
    del content.get("parameters", content)["equal_channels"]
    write_bytes(path, json.dumps(content).encode())


def test_data_sets_of_before_go_on_as_they_were(
    inputs: Path, plain: Path, options: BuildOptions, tmp_path: Path
) -> None:
    """Their colour of equal channels is three channels, also of what is appended, or of what is left of a build."""
    out = Path(shutil.copytree(plain, tmp_path / "grown"))
    older(out)
    before = (out / MANIFEST).read_bytes()
    assert build([inputs / "images"], out, options).scans == 30
    assert (out / MANIFEST).read_bytes() == before
    new = tmp_path / "new"
    new.mkdir()
    picture(np.random.default_rng(2), 1).convert("RGB").save(new / "new.jpg")
    append([new], out, options.model_copy(update={"keep_jpeg": True, "masks": []}))
    assert (entries_of(out)[-1].shape[0], entries_of(out)[-1].jpeg is None) == (3, False)
    assert "equal_channels" not in DataSet(out).manifest.parameters
    begun = tmp_path / "begun"
    build_part([inputs / "images"], begun, options, Part(1, 2))
    older(begun)
    build_part([inputs / "images"], begun, options, Part(2, 2))
    merge([begun], begun)
    assert {entry.shape[0] for entry in entries_of(begun) if entry.mask is None} == {1, 3}
    other = tmp_path / "other"
    build_part([inputs / "images"], other, options, Part(1, 2))
    old = tmp_path / "old"
    build_part([inputs / "images"], old, options, Part(2, 2))
    older(old)
    with pytest.raises(UserError, match="what becomes of colour with equal channels"):
        merge([other, old], tmp_path / "mixed")
    assert not (tmp_path / "mixed" / MANIFEST).exists()


def test_an_append_of_other_options_that_was_begun(kept: Path, keeping: BuildOptions, tmp_path: Path) -> None:
    out, new = Path(shutil.copytree(kept, tmp_path / "out")), tmp_path / "new"
    new.mkdir()
    picture(np.random.default_rng(3)).save(new / "new.jpg")
    given = keeping.model_copy(update={"masks": []})
    assert dies_at(20, lambda: append([new], out, given))
    assert (out / PARTIAL / BUILD).exists()
    with pytest.raises(UserError, match="or with other options"):
        append([new], out, given.model_copy(update={"keep_jpeg": False}))
    assert append([new], out, given).scans == 31


def test_an_option_on_the_command_line(inputs: Path, options: BuildOptions, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from scanfoundry.launch.cli.data_app import data_app

    words = ["build", str(inputs / "images"), "--out", str(tmp_path / "out"), "--keep-jpeg", "--workers", "1"]
    done = CliRunner().invoke(data_app, [*words, "--key-file", str(options.key_file)])
    assert done.exit_code == 0
    assert "29 JPEG files are kept as JPEG" in done.stdout
