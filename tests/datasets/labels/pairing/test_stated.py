"""Patterns that a refusal shows: typed as shown, they pair the data set."""

from pathlib import Path

import pytest

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.labels.mask_files import MaskSet
from scanfoundry.datasets.labels.pairing.candidates import MaskFile
from scanfoundry.datasets.labels.pairing.doubt import Doubt
from scanfoundry.datasets.labels.pairing.pairing import pair
from scanfoundry.datasets.labels.pairing.roles import masks_among
from scanfoundry.datasets.labels.pairing.stated import patterns_of

CASES = ("001", "002", "010")


@pytest.mark.parametrize(
    ("scan", "mask", "expected"),
    [
        ("{}_training.tif", "{}_manual1.gif", ("*_training.tif", "*_manual1.gif")),
        ("B_{0}/B_{0}_flair.nii.gz", "B_{0}/B_{0}_seg.nii.gz", ("*/*_flair.nii.gz", "*/*_seg.nii.gz")),
        ("s{}/ct.nii.gz", "s{}/segmentations/liver.nii.gz", ("*/ct.nii.gz", "*/segmentations/liver.nii.gz")),
        ("p{}/img.png", "p{}/mask.png", ("*/img.png", "*/mask.png")),
        ("{}.png", "p{}.png", ("*.png", "p*.png")),
        ("PANCREAS_{}.nii.gz", "label{}.nii.gz", ("PANCREAS_*.nii.gz", "label*.nii.gz")),
        ("Tr/a/a_{}_left8bit.png", "Tr/a/a_{}_fine_ids.png", ("Tr/a/*_left8bit.png", "Tr/a/*_fine_ids.png")),
        (
            "I{0}/I{0}_Image/I{0}.bmp",
            "I{0}/I{0}_lesion/I{0}_lesion.bmp",
            ("*/*_Image/*.bmp", "*/*_lesion/*_lesion.bmp"),
        ),
        ("T/p{}/lgemri.nrrd", "T/p{}/laendo.nrrd", ("T/*/lgemri.nrrd", "T/*/laendo.nrrd")),
    ],
)
def test_the_patterns_pair_all(scan: str, mask: str, expected: tuple[str, str]) -> None:
    scans, masks = [scan.format(case) for case in CASES], [mask.format(case) for case in CASES]
    for other in scans:  # the two that are known may not belong together
        assert patterns_of(scans, masks, (other, masks[-1]), False) == expected


def test_names_of_two_cases_are_no_patterns() -> None:
    files = [f"p{case}/{name}.png" for case in CASES for name in ("a", "b")]
    assert patterns_of(files, files, (files[0], files[-1]), True) == ("*/a.png", "*/b.png")
    hashes = [f"i{case}/masks/{case[::-1]}{k}f.png" for case in CASES for k in "xyz"]
    images = [f"i{case}/images/i{case}.png" for case in CASES]
    assert patterns_of(images, hashes, (images[0], hashes[0]), False) is None


def test_parts_of_a_mask_among_the_masks_are_told_with_what_leaves_them_out(tmp_path: Path) -> None:
    for case in CASES:
        for name in ("segmentation.png", "instances/tumour-1_annotation-1.png"):
            (path := tmp_path / case / name).parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    scans = [f"{case}/imaging.png" for case in CASES]
    masks = MaskSet([tmp_path], {}, False)
    doubt = Doubt(root=tmp_path)
    masks.pair(scans, doubt)
    assert len(masks.unused(scans, doubt)) == len(CASES)
    assert f"'{tmp_path}/*/imaging.png' --masks '{tmp_path}/*/segmentation.png'" in masks.advice(scans, doubt)
    (tmp_path / "004").mkdir()
    (tmp_path / "004" / "segmentation.png").touch()  # no pattern leaves the mask of a missing scan out
    masks = MaskSet([tmp_path], {}, False)
    masks.pair(scans, doubt)
    assert masks.advice(scans, doubt) == ""


def test_folders_that_say_masks_among_other_words() -> None:
    files = [f"{side}-{kind}/{k}.png" for side in ("trainval", "test") for kind in ("image", "mask") for k in range(3)]
    assert set(masks_among(files, [], True)) == {file for file in files if "-mask/" in file}
    files = [file.replace("trainval", "extra") for file in files]
    with pytest.raises(UserError, match=r"'extra-mask/0\.png' may be a mask, as its folder 'extra-mask' says"):
        masks_among(files, [], True)


def test_a_mask_whose_numbered_scan_is_missing_is_said_to_have_none() -> None:
    files = [MaskFile(Path("/m"), f"{k}_mask.png") for k in (1, 2, 70)]
    found = pair(["1.png", "2.png"], files, Doubt())
    assert [mask.relative for mask in found.left] == ["70_mask.png"]
