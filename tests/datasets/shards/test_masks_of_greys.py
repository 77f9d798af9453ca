"""Masks of pictures in a build: palettes by index, black and white as 0 and 1, greys cut only where that is clear."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.datasets.labels.attach import mask_on
from scanfoundry.datasets.readers import read
from scanfoundry.datasets.shards.build import BuildOptions, BuildSummary, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.reader import DataSet, ShardReader

RNG = np.random.default_rng(0)
SIDE = 48
SHAPE = np.zeros((SIDE, SIDE), bool)
SHAPE[10:30, 15:33] = True


def palette(transparency: bool) -> Image.Image:
    image = Image.fromarray(SHAPE.astype(np.uint8) * 2, "P")
    image.putpalette([255, 255, 255, 9, 9, 9, 0, 0, 0])
    if transparency:
        image.info["transparency"] = 0
    return image


WHITE = Image.fromarray((SHAPE * 255).astype(np.uint8))
MASKS = {
    "white.png": WHITE,
    "lossy.jpg": WHITE,
    "index.png": palette(False),
    "clear.png": palette(True),
    "bits.png": Image.fromarray(SHAPE),
    "ignored.png": Image.fromarray(np.where(np.roll(SHAPE, 4, 0) & ~SHAPE, 255, SHAPE).astype(np.uint8)),
    "grey.jpg": Image.fromarray((SHAPE * 127).astype(np.uint8)),
    "noise.png": Image.fromarray(RNG.integers(0, 255, (SIDE, SIDE)).astype(np.uint8)),
    "named.png": Image.fromarray((SHAPE * 3 + np.roll(SHAPE, 18, 1) * 4).astype(np.uint8)),
}


def made(folder: Path, masks: dict[str, Image.Image], **options: object) -> BuildSummary:
    for name, mask in masks.items():
        for part in ("images", "masks"):
            (folder / part).mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 200, (SIDE, SIDE)).astype(np.uint8)).save(
            folder / "images" / f"{name.split('.')[0]}.png"
        )
        mask.save(folder / "masks" / name, **({"transparency": 0} if "transparency" in mask.info else {}))
    chosen = BuildOptions(masks=[folder / "masks"], modality="us", workers=1, **options)  # type: ignore[arg-type]
    return build([folder / "images"], folder / "shards", chosen)


def stored(folder: Path) -> dict[str, tuple[np.ndarray, str]]:
    """(mask, how it was drawn) by name."""
    names = {keyed_hash(site_key(None), "scan", f"{name.split('.')[0]}.png")[:20]: name for name in MASKS}
    found = {}
    data = DataSet(folder / "shards")
    for shard in data.manifest.shards:
        reader = ShardReader(folder / "shards", shard)
        for number, entry in enumerate(reader.entries):
            if entry.mask is not None:
                known = reader.labels(number)
                assert known.mask is not None
                found[names[entry.key]] = known.mask[0], known.greys
    return found


def test_every_kind_of_mask(tmp_path: Path) -> None:
    summary = made(tmp_path, MASKS)
    found = stored(tmp_path)
    assert {name: kind for name, (_, kind) in found.items()} == {
        "white.png": "white", "lossy.jpg": "cut", "index.png": "", "clear.png": "", "bits.png": "", "ignored.png": "",
        "named.png": "",
    }  # fmt: skip
    for name in ("white.png", "lossy.jpg", "bits.png"):
        assert np.array_equal(found[name][0], SHAPE)
    for name in ("index.png", "clear.png"):
        assert np.array_equal(found[name][0], SHAPE * 2)
    assert np.unique(found["ignored.png"][0]).tolist() == [0, 1, 255]
    lines = {line.path: line.reason for line in read_quarantine(tmp_path / "shards")}
    assert "JPEG has changed its values" in lines["grey.png"]
    assert "no regions" in lines["noise.png"]
    assert summary.quarantined == {"label": 2}
    assert "2 masks hold 0 and 255 alone and are stored as 0 and 1" in summary.notes
    assert "1 of these held greys (lossy compression) and were cut at half" in summary.notes
    report = check(tmp_path / "shards")
    assert report.labels["mask of 0 and 255, as 0 and 1"] == 2
    assert report.labels["mask of greys, cut at half"] == 1


def test_boxes_are_around_no_ignored_voxel(tmp_path: Path) -> None:
    (tmp_path / "names.json").write_text('{"1": "lesion", "255": "ignore"}')
    made(tmp_path, {"ignored.png": MASKS["ignored.png"]}, labels=[tmp_path / "names.json"], boxes_from_masks=True)
    data = DataSet(tmp_path / "shards")
    (entry,) = ShardReader(tmp_path / "shards", data.manifest.shards[0]).entries
    assert entry.labels is not None
    assert [box.label for box in entry.labels.boxes or ()] == ["lesion"]


def test_black_and_white_on_the_grid_of_a_scan(tmp_path: Path) -> None:
    made(tmp_path, {"white.png": WHITE})
    WHITE.save(tmp_path / "masks" / "white_mask.png")
    (scan,) = read(tmp_path / "images" / "white.png")
    assert np.array_equal(mask_on(scan, tmp_path / "masks" / "white_mask.png")[0], SHAPE)


def test_fine_tuning_from_shards_reads_what_the_files_say(tmp_path: Path) -> None:
    """Black and white is one class; where another mask holds 1 and 255, nobody knows: it is asked, as of the files."""
    from scanfoundry.finetune.checks.check import Checked, check_cases
    from scanfoundry.finetune.config.study import LabelledData
    from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
    from scanfoundry.finetune.formats import discover

    def checked(path: Path, **task: object) -> Checked:
        chosen = SegmentationTask(**task)  # type: ignore[arg-type]
        data = LabelledData(path=str(path), modality="us")
        return check_cases(discover(data, chosen).cases, chosen, None)

    folder = tmp_path / "one"
    folder.mkdir()
    made(folder, {name: MASKS[name] for name in ("white.png", "lossy.jpg")})
    for path in (folder, folder / "shards"):
        found = checked(path)
        assert (found.classes, found.values and found.values.written) == (["label 1"], [1])
        assert [*found.voxels.values()] == [[int(SHAPE.sum())]] * 2
    folder = tmp_path / "two"
    folder.mkdir()
    made(folder, {name: MASKS[name] for name in ("white.png", "ignored.png")})
    for path in (folder, folder / "shards"):
        with pytest.raises(UserError, match="hold 255 beside 1"):
            checked(path)
        left = checked(path, ignore=255)
        assert left.classes == ["label 1"]
        assert sorted(left.voxels.values()) == [[0], [int(SHAPE.sum())]]
