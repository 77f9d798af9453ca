"""Labels from any source end in the shards as they were given, and stock tools read them there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
import webdataset
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.discovery.quarantine import read_quarantine
from scanfoundry.datasets.discovery.sources import PlannedSource, ShardPlan
from scanfoundry.datasets.identity import keyed_hash, site_key
from scanfoundry.datasets.labels import Box, LabelRef, Labels
from scanfoundry.datasets.readers import Scan, file_source
from scanfoundry.datasets.shards import shard_worker
from scanfoundry.datasets.shards.build import BuildOptions, BuildSummary, build
from scanfoundry.datasets.shards.check import check
from scanfoundry.datasets.shards.format import SampleEntry
from scanfoundry.datasets.shards.reader import DataSet, ShardReader
from scanfoundry.datasets.shards.writer import ShardWriter

AFFINE = np.diag([0.8, 0.9, 2.5, 1.0])
RNG = np.random.default_rng(0)
VOLUMES = {f"case{number}": RNG.normal(100, 30, (11, 12, 8 + number)).astype(np.int16) for number in range(6)}
MASKS = {
    "case0": RNG.integers(0, 3, (11, 12, 8)),
    "case1": RNG.integers(0, 300, (11, 12, 9)),  # two bytes
    "case2": RNG.integers(0, 2, (11, 12, 10)) * 70_000,  # four
    "case3": np.zeros((11, 12, 11), int),
    "case4": np.ones((11, 12, 5), int),  # of another shape
}
SHIFTED = "case5"  # its mask lies elsewhere
CSV = """id,diagnosis,age,sex,z0,y0,x0,z1,y1,x1,label
case0,benign,61,f,1,2,3,4,5,6,nodule
case0,benign,61,f,0,0,0,2,2,2,
case1,malignant,40,m,,,,,,,
case2,benign,,f,2,3,4,7,8,9,mass
case2,benign,,f,20,3,4,27,8,9,mass
case4,malignant,55,m,0,0,0,5,5,5,mass
case5,benign,33,m,1,1,1,3,3,3,mass
"""

Opened = dict[str, tuple[ShardReader, int, SampleEntry]]


def opened(folder: Path, key_file: Path, names: list[str]) -> Opened:
    """(reader, number, entry) of each sample by the name of its source."""
    key, data = site_key(key_file), DataSet(folder)
    named = {keyed_hash(key, "scan", name)[:20]: name.split(".")[0] for name in names}
    found = {}
    for shard in data.manifest.shards:
        reader = ShardReader(folder, shard)
        for number, entry in enumerate(reader.entries):
            found[named[entry.key]] = reader, number, entry
    return found


@pytest.fixture(scope="module")
def site(fixed_key: Callable[[str], Path]) -> Path:
    return fixed_key("labels")


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    for name in ("scans", "masks"):
        (folder / name).mkdir()
    for name, array in VOLUMES.items():
        nib.save(nib.Nifti1Image(array, AFFINE), folder / "scans" / f"{name}.nii.gz")
    for name, mask in MASKS.items():
        nib.save(nib.Nifti1Image(mask.astype(np.int32), AFFINE), folder / "masks" / f"{name}.nii.gz")
    shifted = AFFINE.copy()
    shifted[0, 3] = 40
    mask = np.ones(VOLUMES[SHIFTED].shape, np.uint8)
    nib.save(nib.Nifti1Image(mask, shifted), folder / "masks" / f"{SHIFTED}.nii.gz")
    (folder / "names.json").write_text('{"1": "liver", "2": "tumour"}')
    (folder / "list.csv").write_text(CSV)
    return folder


@pytest.fixture(scope="module")
def built(cohort: Path, site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BuildSummary]:
    out = tmp_path_factory.mktemp("built") / "out"
    options = BuildOptions(
        labels=[cohort / "list.csv", cohort / "names.json"], label_columns=["age", "sex"], masks=[cohort / "masks"],
        key_file=site, workers=1,
    )  # fmt: skip
    return out, build([cohort / "scans"], out, options)


@pytest.fixture(scope="module")
def samples(built: tuple[Path, BuildSummary], site: Path) -> Opened:
    return opened(built[0], site, [f"{name}.nii.gz" for name in VOLUMES])


def labels_of(samples: Opened, name: str) -> Labels:
    reader, number, _ = samples[name]
    return reader.labels(number)


@pytest.mark.parametrize(("name", "dtype"), [("case0", "uint8"), ("case1", "uint16"), ("case2", "uint32")])
def test_masks_come_back_in_the_smallest_type(samples: Opened, name: str, dtype: str) -> None:
    mask = labels_of(samples, name).mask
    assert mask is not None
    assert mask.dtype == dtype
    assert np.array_equal(mask, MASKS[name].T)
    reader, number, entry = samples[name]
    assert entry.mask is not None
    assert entry.mask.dtype == dtype
    region = (slice(2, 5), slice(1, 12), slice(0, 3))
    assert np.array_equal(reader.read_mask(number, region), MASKS[name].T[region])
    assert np.array_equal(reader.read(number)[0], VOLUMES[name].T)


def test_an_empty_mask_is_a_mask(samples: Opened) -> None:
    mask = labels_of(samples, "case3").mask
    assert mask is not None
    assert mask.dtype == np.uint8
    assert not mask.any()


def test_classes_targets_and_boxes_are_those_of_the_list(samples: Opened) -> None:
    found = {name: labels_of(samples, name) for name in VOLUMES}
    assert found["case0"].classes == {"diagnosis": "benign", "sex": "f"}
    assert found["case0"].targets == {"age": 61.0}
    assert found["case0"].boxes == (Box((1, 2, 3), (4, 5, 6), "nodule"), Box((0, 0, 0), (2, 2, 2), "finding"))
    assert found["case0"].names == {1: "liver", 2: "tumour"}
    assert (found["case1"].boxes, found["case1"].targets) == ((), {"age": 40.0})  # looked, and there is none
    assert (found["case2"].classes, found["case2"].targets) == ({"diagnosis": "benign", "sex": "f"}, {})
    assert (found["case3"].boxes, found["case3"].classes) == (None, {})  # nobody looked


def test_what_does_not_fit_is_left_out_and_told(samples: Opened, built: tuple[Path, BuildSummary]) -> None:
    out, summary = built
    for name in ("case4", SHIFTED):
        assert labels_of(samples, name).mask is None
        reader, number, _ = samples[name]
        assert np.array_equal(reader.read(number)[0], VOLUMES[name].T)
    assert labels_of(samples, "case2").boxes == (Box((2, 3, 4), (7, 8, 9), "mass"),)  # the other lies outside
    lines = {line.path: line for line in read_quarantine(out)}
    assert {line.kind for line in lines.values()} == {"label"}
    assert lines.keys() == {"case2.nii.gz", "case4.nii.gz", f"{SHIFTED}.nii.gz"}
    assert lines["case2.nii.gz"].reason == "1 boxes are empty or lie outside of the scan"
    assert "mask: shape" in lines["case4.nii.gz"].reason
    assert "away from the scan" in lines[f"{SHIFTED}.nii.gz"].reason
    assert summary.scans == 6
    assert summary.quarantined == {"label": 3}


def test_stock_webdataset_reads_labels(built: tuple[Path, BuildSummary], samples: Opened) -> None:
    names = {entry.key: name for name, (_, _, entry) in samples.items()}
    seen = 0
    for shard in DataSet(built[0]).manifest.shards:
        for sample in webdataset.WebDataset(str(built[0] / shard.name), shardshuffle=False):
            name, facts = names[sample["__key__"]], json.loads(sample["json"])
            known = labels_of(samples, name)
            assert ("mask.b2nd" in sample) == (known.mask is not None)
            assert facts.get("labels", {}).get("classes", {}) == known.classes
            assert facts.get("labels", {}).get("targets", {}) == known.targets
            boxes = facts.get("labels", {}).get("boxes")
            assert boxes == (None if known.boxes is None else [as_json(box) for box in known.boxes])
            if known.mask is not None:
                numbers = blosc2.ndarray_from_cframe(sample["mask.b2nd"])[:]
                entry = samples[name][2].mask
                assert entry is not None
                numbers = np.cumsum(numbers, axis=2, dtype=np.uint8) if entry.rows else numbers
                assert np.array_equal(numbers[0], known.mask)
            seen += 1
    assert seen == 6


def as_json(box: Box) -> dict[str, Any]:
    return {"low": list(box.low), "high": list(box.high), "label": box.label}


def test_check_counts_labels(built: tuple[Path, BuildSummary]) -> None:
    report = check(built[0])
    assert report.labels["mask"] == 4
    assert report.labels["boxes"] == 3
    assert report.labels["class diagnosis"] == 3
    assert report.labels["target age"] == 2


def test_entries_of_medmnist(site: Path, tmp_path: Path) -> None:
    sets = {}
    for split, count in (("train", 9), ("val", 4), ("test", 5)):
        sets[f"{split}_images"] = RNG.integers(0, 255, (count, 28, 28, 3)).astype(np.uint8)
        sets[f"{split}_labels"] = RNG.integers(0, 7, (count, 1))
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "dermamnist.npz", **sets)
    # A split's image in another one: it leaks, and is told.
    sets["test_images"][2] = sets["train_images"][3]
    sets["test_labels"][2] = (sets["train_labels"][3] + 1) % 7
    np.savez(tmp_path / "in" / "dermamnist.npz", **sets)
    summary = build([tmp_path / "in"], tmp_path / "out", BuildOptions(key_file=site, modality="derm", workers=1))
    assert (summary.sources, summary.scans, summary.patients) == (1, 17, 18)
    assert summary.warnings == {"labels_differ": 1}
    (line,) = read_quarantine(tmp_path / "out")
    assert line.kind == "duplicate"
    assert line.path == "dermamnist.npz (test-2)"
    assert line.reason == "has the same voxels as dermamnist.npz (train-3); their labels differ"
    key, data = site_key(site), DataSet(tmp_path / "out")
    reader = ShardReader(data.folder, data.manifest.shards[0])
    places = {entry.key: number for number, entry in enumerate(reader.entries)}
    for split, count in (("train", 9), ("val", 4), ("test", 5)):
        for number in range(count):
            if (split, number) == ("test", 2):
                continue
            place = places.pop(keyed_hash(key, "scan", f"dermamnist.npz\0{split}-{number}")[:20])
            entry = reader.entries[place]
            assert (entry.split, entry.shape) == (split, (3, 1, 28, 28))
            image = np.moveaxis(sets[f"{split}_images"][number], -1, 0)
            assert np.array_equal(reader.read(place)[:, 0], image)
            assert reader.labels(place).classes == {"label": str(sets[f"{split}_labels"][number, 0])}
    assert not places


def test_masks_of_entries(site: Path, tmp_path: Path) -> None:
    images = RNG.integers(0, 255, (3, 20, 30)).astype(np.uint8)
    masks = RNG.integers(0, 2, (3, 20, 30)).astype(np.uint8) * 255
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in" / "a.npz", images=images, masks=masks)
    build([tmp_path / "in"], tmp_path / "out", BuildOptions(key_file=site, workers=1))
    data, key = DataSet(tmp_path / "out"), site_key(site)
    reader = ShardReader(data.folder, data.manifest.shards[0])
    places = {entry.key: number for number, entry in enumerate(reader.entries)}
    for number in range(3):
        found = reader.labels(places[keyed_hash(key, "scan", f"a.npz\0{number}")[:20]]).mask
        assert found is not None
        assert (found.dtype, found.shape) == (np.uint8, (1, 20, 30))
        assert np.array_equal(found[0], masks[number] // 255)


def test_image_masks_of_a_folder_and_boxes_of_them(site: Path, tmp_path: Path) -> None:
    for name in ("in", "masks"):
        (tmp_path / name).mkdir()
    for number in range(3):
        Image.fromarray(RNG.integers(0, 255, (20, 30)).astype(np.uint8)).save(tmp_path / "in" / f"x{number}.png")
        mask = np.zeros((20, 30), np.uint8)
        mask[2 : 5 + number, 3:9] = 255
        Image.fromarray(mask).save(tmp_path / "masks" / f"x{number}_mask.png")
    options = BuildOptions(key_file=site, workers=1, masks=[tmp_path / "masks"], boxes_from_masks=True)
    build([tmp_path / "in"], tmp_path / "out", options)
    found = opened(tmp_path / "out", site, [f"x{number}.png" for number in range(3)])
    for number in range(3):
        labels = labels_of(found, f"x{number}")
        assert labels.boxes == (Box((0, 2, 3), (1, 5 + number, 9), "finding"),)
        assert labels.mask is not None
        assert labels.mask.max() == 1


def test_labels_of_nothing_here_are_a_mistake(cohort: Path, site: Path, tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("id,diagnosis\nelsewhere1,benign\nelsewhere2,benign\n")
    options = BuildOptions(key_file=site, labels=[tmp_path / "other.csv"])
    with pytest.raises(UserError, match=r"other\.csv: none of its labels is of a scan here"):
        build([cohort / "scans"], tmp_path / "out", options)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="do not exist"):
        build([cohort / "scans"], tmp_path / "out", options.model_copy(update={"labels": [tmp_path / "no.csv"]}))


def test_labels_that_changed_are_another_build(cohort: Path, site: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.csv"
    listed.write_text("id,diagnosis\ncase0,benign\ncase1,benign\n")
    options = BuildOptions(key_file=site, labels=[listed], workers=1)
    build([cohort / "scans"], tmp_path / "out", options)
    listed.write_text("id,diagnosis\ncase0,benign\ncase1,malignant\n")
    with pytest.raises(UserError, match="--labels or --masks"):
        build([cohort / "scans"], tmp_path / "out", options)


LONG = "x" * 65


@pytest.mark.parametrize(
    "labels",
    [
        Labels(boxes=(Box((0, 0, 0), (1, 2, 2), LONG),)),
        Labels(targets={"a": float("inf")}),
        Labels(targets={"a": float("nan")}),
        Labels(boxes=(Box((0, 0, 0), (1, float("inf"), 2)),)),
    ],
)
def test_labels_that_cannot_be_stored_do_not_end_in_an_index(labels: Labels, tmp_path: Path) -> None:
    """An index that cannot be read again would cost the whole build."""
    scan = Scan(np.arange(64, dtype=np.uint8).reshape(1, 1, 8, 8), (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r".+"), ShardWriter(tmp_path / "s.tar", "zstd") as writer:
        writer.add(scan, "a", "mr", "0" * 32, labels)
    assert not list(tmp_path.iterdir())


def test_a_long_name_of_a_box_costs_no_build(site: Path, tmp_path: Path, write_png: Callable) -> None:
    for number in range(4):
        write_png(tmp_path / "in" / f"x{number}.png", RNG.integers(0, 255, (20, 30)).astype(np.uint8))
    lines = ["id,x0,y0,x1,y1,label", f"x0,1,2,3,4,{LONG}", "x1,1,2,3,4,nodule"]
    (tmp_path / "list.csv").write_text("\n".join(lines))
    options = BuildOptions(key_file=site, labels=[tmp_path / "list.csv"], workers=1)
    summary = build([tmp_path / "in"], tmp_path / "out", options)
    assert summary.scans == 4
    found = opened(tmp_path / "out", site, [f"x{number}.png" for number in range(4)])
    assert labels_of(found, "x1").boxes == (Box((0, 2, 1), (1, 4, 3), "nodule"),)
    told = [line for line in read_quarantine(tmp_path / "out") if line.path == "x0.png"]
    assert told or labels_of(found, "x0").boxes == (Box((0, 2, 1), (1, 4, 3), LONG[:64]),)


def test_a_mask_that_breaks_its_reader_costs_no_build(
    cohort: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damage may take a parser anywhere; a reader that raises what no reader should stands in for it."""

    def broken(*given: object) -> Labels:
        raise IndexError(str(cohort))

    monkeypatch.setattr(shard_worker, "attach", broken)
    (tmp_path / shard_worker.PARTIAL).mkdir()
    ref = LabelRef(mask=cohort / "masks" / "case0.nii.gz")
    planned = PlannedSource(file_source(cohort / "scans", "case0.nii.gz"), "0" * 32, "0" * 32, ref)
    plan = ShardPlan("shard-000000.tar", [planned])
    *_, result = shard_worker.run(shard_worker.ShardTask(plan, tmp_path, b"k" * 32, "mr", "zstd"))
    assert result.record is not None
    (line,) = result.quarantine
    assert (line.kind, line.path) == ("label", "case0.nii.gz")
    assert str(cohort) not in line.reason
