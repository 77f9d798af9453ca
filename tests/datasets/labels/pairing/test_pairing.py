"""Which mask is of which scan, by names alone; and a build's masks, voxel by voxel."""

import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.pairing.candidates import MaskFile
from scanfoundry.datasets.labels.pairing.doubt import Doubt
from scanfoundry.datasets.labels.pairing.pairing import pair
from scanfoundry.datasets.labels.pairing.roles import masks_among
from scanfoundry.datasets.labels.pairing.vocabulary import folder_kind, rest_of, scans_named
from scanfoundry.datasets.shards.build import BuildOptions, build
from scanfoundry.datasets.shards.reader import DataSet, ShardReader

Paired = dict[str, tuple[str, ...]]


def paired(scans: str, masks: str, suffix: str = ".png") -> Paired:
    """Pairs of names, given and returned without their suffix."""
    files = [MaskFile(Path("/m"), f"{name}{suffix}") for name in masks.split()]
    found = pair([f"{name}.png" for name in scans.split()], files, Doubt())
    assert not found.left
    return {
        scan.removesuffix(".png"): tuple(m.relative.removesuffix(suffix) for m in of) for scan, of in found.of.items()
    }


def one_to_one(scans: str, masks: str) -> Paired:
    return {scan: (mask,) for scan, mask in zip(scans.split(), masks.split(), strict=True)}


@pytest.mark.parametrize(
    ("scans", "masks"),
    [
        ("gt_1 gt_2", "gt_1 gt_2"),  # the same name beats the mark in it
        ("x1_seg x2_seg", "x1_seg x2_seg"),
        ("x x_seg", "x x_seg"),
        ("c0 c1 c5", "c0 c1 c5_seg"),
        ("a/1 b/1", "a/1 b/1"),
        ("a b", "a_mask gt-b"),
        ("a_scan b_scan", "a_scanGT b_scan.label"),
        ("x_0000 y_0000", "x y"),  # nnU-Net's first channel
        ("x_0000 y_0000", "x_seg y_seg"),
        ("IMG_0000 IMG_0001", "IMG_0000 IMG_0001"),
        ("img_0000 img_0001", "mask_0000 mask_0001"),
        ("img_1 img_2 img_10", "mask_1 mask_2 mask_10"),
        ("volume-0 volume-1", "segmentation-0 segmentation-1"),
        ("scan0 scan1", "label0 label1"),
        ("train/1_img test/1_img", "train/1_mask test/1_mask"),
        ("images/p1/x images/p2/x", "p1/x p2/x"),
        ("p1/image p2/image", "p1/mask p2/mask"),
        ("p1/ct p2/ct", "p1/seg p2/seg"),
        ("p1/image p2/image", "p1_mask p2_mask"),
        ("img_01_1 img_01_2", "mask_01_1 mask_01_2"),
        ("IMG_1 IMG_2", "img_1 img_2"),
    ],
)
def test_names_with_one_reading(scans: str, masks: str) -> None:
    assert paired(scans, masks) == one_to_one(scans, masks)


def test_scans_without_a_mask_where_whole_names_are_carried() -> None:
    assert paired("a b c", "b") == {"b": ("b",)}
    assert paired("p1_4d p1_01 p2_01", "p1_01_gt") == {"p1_01": ("p1_01_gt",)}
    assert paired("IMG_0000 IMG_0001 IMG_0002", "IMG_0001") == {"IMG_0001": ("IMG_0001",)}
    assert paired("p1/ct p2/ct", "p2/seg") == {"p2/ct": ("p2/seg",)}


def test_several_masks_of_one_scan_carry_its_whole_name() -> None:
    found = paired("x y", "x_mask x_mask_1 x_mask_2 y_mask")
    assert found == {"x": ("x_mask", "x_mask_1", "x_mask_2"), "y": ("y_mask",)}


def test_a_mark_alone_is_of_the_contrasts_of_its_folder() -> None:
    assert set(paired("p/t1 p/flair q/t1", "p/seg q/seg")) == {"p/t1", "p/flair", "q/t1"}
    assert set(paired("p/water p/fat q/water q/fat", "p/seg q/seg")) == {"p/water", "p/fat", "q/water", "q/fat"}


def test_the_mask_of_a_case_is_of_its_first_channel() -> None:
    assert paired("x_0000 x_0001 y_0000 y_0001", "x y") == {"x_0000": ("x",), "y_0000": ("y",)}
    assert paired("x_0000 x_0001 y_0000 y_0001", "x") == {"x_0000": ("x",)}  # y shows what the numbers mean


@pytest.mark.parametrize(
    ("scans", "masks", "reason"),
    [
        ("img_1 img_2 img_3", "mask_1 mask_2", "'img_3.png' has none: a guess"),
        ("img_1 img_2", "mask_1 mask_2 mask_3", "'/m/mask_3.png' is of none: a guess"),
        ("img_1 1_img", "mask_1", "may be the mask of 'img_1.png' or of '1_img.png'"),
        ("a/img_1 b/img_1", "mask_1", "may be the mask of 'a/img_1.png' or of 'b/img_1.png'"),
        ("img_0 img_1", "mask_1 mask_2", "a guess from names counts only where it pairs all"),
        ("x x_1", "x_mask x_mask_1", "may be the mask of 'x.png' or of 'x_1.png'"),
        ("x y", "x x_mask y", "two masks of one scan: '/m/x.png' and '/m/x_mask.png'"),
        ("x", "x_mask x_seg", "two masks of one scan"),
        ("x", "liver/x tumour/x", "two masks of one scan"),
        ("x", "x_mask x_mask_left", "two masks of one scan"),
        ("x y", "x_left x_right y", "its name says more"),
        ("a b", "seg_a a_seg", "two masks of one scan"),
        ("p/img1 p/img2 q/img1 q/img2", "p/seg q/seg", "may be the mask of 'p/img1.png' or of 'p/img2.png'"),
        ("p/left p/right q/left q/right", "p/seg q/seg", "may be the mask of 'p/left.png' or of 'p/right.png'"),
        ("p/img p/img2 q/img q/img2", "p/mask q/mask", "may be the mask of 'p/img.png' or of 'p/img2.png'"),
        ("p/pre p/post q/pre q/post", "p/seg q/seg", "may be the mask of 'p/pre.png' or of 'p/post.png'"),
        ("p/ct p/scout q/ct q/scout", "p/seg q/seg", "may be the mask of 'p/ct.png' or of 'p/scout.png'"),
        ("p/t1 p/t1_2 q/t1 q/t1_2", "p/seg q/seg", "may be the mask of 'p/t1.png' or of 'p/t1_2.png'"),
        ("p/ct q/ct", "p/seg p/seg_1 q/seg", "two masks of one scan"),
        ("IMG_0000 IMG_0001 IMG_0002", "IMG", "a case whose channels are 'IMG_0000.png' to 'IMG_0002.png'"),
        ("a_0000 a_0001 b_0003", "a b", "or of a case whose channels are"),
        ("p/image q/image", "p/mask p/mask_1", "two masks of one scan"),
    ],
)
def test_two_readings_are_one_line_with_candidates_and_what_to_type(scans: str, masks: str, reason: str) -> None:
    with pytest.raises(UserError) as raised:
        paired(scans, masks)
    assert reason in str(raised.value)
    assert "scanfoundry data build '" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_advice_spells_the_patterns_of_both() -> None:
    doubt = Doubt("data.images='{images}' data.labels='{masks}'", root=Path("/d"))
    masks = [MaskFile(Path("/d"), f"train/mask_{k}.png") for k in (1, 2)]
    with pytest.raises(UserError, match=r"data\.images='/d/train/img_\*\.png' data\.labels='/d/train/mask_\*\.png'"):
        pair(["train/img_1.png", "train/img_2.png", "train/img_3.png"], masks, doubt)


def among(files: str, scans: str = "", shared: bool = True) -> set[str]:
    found = masks_among([f"{f}.png" for f in files.split()], [f"{s}.png" for s in scans.split()], shared)
    return {name.removesuffix(".png") for name in found}


def test_masks_among_the_scans_of_a_folder() -> None:
    assert among("img_1 mask_1 img_2 mask_2") == {"mask_1", "mask_2"}
    assert among("gt_1 gt_1_mask gt_2 gt_2_mask") == {"gt_1_mask", "gt_2_mask"}
    assert among("a/images/x a/masks/x") == {"a/masks/x"}
    assert among("label_01/ct label_01/seg label_02/ct") == {"label_01/seg"}  # a patient's folder
    assert among("a annamask anna") == {"annamask"}
    assert among("case_0 maskcase_0 maskcase_0_1") == {"maskcase_0", "maskcase_0_1"}


def test_in_a_folder_of_their_own_all_are_masks() -> None:
    assert among("c0 c1 c5_seg", "c0 c1 c5", shared=False) == {"c0", "c1", "c5_seg"}
    assert among("c0 c1 c5_seg", "c0 c1 c5") == {"c0", "c1", "c5_seg"}  # the folder was given as an input, too
    assert among("x x_seg", "x x_seg", shared=False) == {"x", "x_seg"}
    assert among("x x_mask y y_mask", "x y", shared=False) == {"x_mask", "y_mask"}  # copies of the scans


@pytest.mark.parametrize("files", ["gt_1 gt_1_mask gt_2", "a mask_a mask_a_seg"])
def test_a_name_that_says_scan_and_mask(files: str) -> None:
    with pytest.raises(UserError, match="mask"):
        among(files)


def test_what_words_say() -> None:
    assert scans_named("x_seg_mask") == (("x_seg", None), ("x", None))
    assert scans_named("benign (1)_mask_1") == (("benign (1)", 1),)
    assert rest_of("Img_012-maskB") == ("012", "b")
    assert [folder_kind(name) for name in ("labelsTr", "train_images", "seg_01", "p1")] == ["mask", "image", "", ""]


def squares(folder: Path, count: int) -> dict[str, int]:
    """Images img_k.png of value k + 1 and masks mask_k.png of 10 + k voxels; the voxels by the images' value."""
    folder.mkdir(parents=True)
    for k in range(count):
        Image.fromarray(np.full((48, 48), k + 1, np.uint8)).save(folder / f"img_{k}.png")
        mask = np.zeros((48, 48), np.uint8)
        mask.flat[: 10 + k] = 255
        Image.fromarray(mask).save(folder / f"mask_{k}.png")
    return {k + 1: 10 + k for k in range(count)}


def built(out: Path, inputs: Sequence[Path], masks: Sequence[Path], labels: Sequence[Path] = ()) -> dict[int, int]:
    """Foreground voxels by the value of the image; 0 without a mask."""
    options = BuildOptions(
        masks=list(masks), labels=list(labels), workers=1, modality="us", key_file=out.parent / "key"
    )
    build(inputs, out, options)
    data = DataSet(out)
    found = {}
    for shard in data.manifest.shards:
        with closing(ShardReader(out, shard)) as reader:
            for number in range(len(data.index(shard).samples)):
                mask = reader.read_mask(number)
                found[int(reader.read(number).max())] = 0 if mask is None else int((mask > 0).sum())
    return found


def test_a_build_of_numbered_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    expected = squares(tmp_path / "in" / "train", 10)
    assert built(tmp_path / "out", [tmp_path / "in"], [tmp_path / "in"]) == expected


def test_patterns_decide_in_a_build(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    expected = squares(folder, 4)
    (folder / "mask_3.png").unlink()
    with pytest.raises(UserError, match=r"state it with patterns, as in scanfoundry data build '.*in/img_\*\.png'"):
        built(tmp_path / "out", [folder], [folder])
    found = built(tmp_path / "out", [folder / "img_*.png"], [folder / "mask_*.png"])
    assert found == expected | {4: 0}
    with pytest.raises(UserError, match="no readable mask is called as"):
        built(tmp_path / "other", [folder / "img_*.png"], [folder / "seg_*.png"])


def test_a_pattern_of_masks_and_a_folder_of_scans(tmp_path: Path) -> None:
    expected = squares(tmp_path / "all", 3)
    for part in ("img", "mask"):
        (tmp_path / part).mkdir()
        for path in (tmp_path / "all").glob(f"{part}_*"):
            path.rename(tmp_path / part / (path.name.removeprefix("img_") if part == "img" else f"s{path.name}"))
    assert built(tmp_path / "out", [tmp_path / "img"], [tmp_path / "mask" / "smask_*.png"]) == expected


def test_a_folder_where_nothing_tells_scans_from_masks(tmp_path: Path) -> None:
    squares(tmp_path / "in", 2)
    for path in (tmp_path / "in").iterdir():
        path.rename(path.with_name(path.name.replace("img", "a").replace("mask", "b")))
    with pytest.raises(UserError, match="nothing tells images from masks in"):
        built(tmp_path / "out", [tmp_path / "in"], [tmp_path / "in"])
    assert len(built(tmp_path / "out", [tmp_path / "in" / "a_*.png"], [tmp_path / "in" / "b_*.png"])) == 2


def test_a_build_gives_the_masks_of_nnunet_to_its_images_not_to_predictions_beside(tmp_path: Path) -> None:
    root = tmp_path / "in"
    expected = squares(root, 3)
    for folder in ("imagesTr", "labelsTr", "predictions"):
        (root / folder).mkdir()
    for number in range(3):
        shutil.copy(root / f"mask_{number}.png", root / "predictions" / f"c{number}.png")
        (root / f"mask_{number}.png").rename(root / "labelsTr" / f"c{number}.png")
        (root / f"img_{number}.png").rename(root / "imagesTr" / f"c{number}_0000.png")
    names = {"channel_names": {"0": "us"}, "labels": {"background": 0, "a": 255}, "file_ending": ".png"}
    (root / "dataset.json").write_text(json.dumps(names))
    found = built(tmp_path / "out", [root], [], [root / "dataset.json"])
    assert found == expected | {255: 0}
