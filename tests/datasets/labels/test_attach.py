"""Labels on the grid of their scan, or a reason why not."""

from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy import ndimage

from scanfoundry.datasets.labels import Box, LabelRef, Labels
from scanfoundry.datasets.labels.attach import attach, mask_on
from scanfoundry.datasets.readers import read
from scanfoundry.datasets.readers.box_labels import boxes_of_mask, fit_boxes
from scanfoundry.datasets.readers.scan import ReadError, Scan

RNG = np.random.default_rng(0)
TURN = np.array(sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.1).GetMatrix()).reshape(3, 3)
AFFINE = np.block([[TURN * [1.2, 1.1, 2.5], np.array([[-5.0], [4], [9]])], [np.zeros((1, 3)), np.ones((1, 1))]])


def volume(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def flat(shape: tuple[int, ...] = (1, 1, 20, 30)) -> Scan:
    return Scan(np.zeros(shape, np.uint8), (1.0, 1.0, 1.0))


@settings(max_examples=60, deadline=None)
@given(arrays(np.uint8, array_shapes(min_dims=3, max_dims=3, max_side=7), elements=st.integers(0, 2)))
def test_boxes_are_the_components(mask: np.ndarray) -> None:
    boxes = boxes_of_mask(mask, {2: "tumour"})
    assert {box.label for box in boxes} <= {"finding", "tumour"}
    for value, label in ((1, "finding"), (2, "tumour")):
        mine = [box for box in boxes if box.label == label]
        count = ndimage.label(mask == value, np.ones((3, 3, 3)))[1]
        assert len(mine) == count
        covered = np.zeros(mask.shape, bool)
        for box in mine:
            place = tuple(slice(int(a), int(b)) for a, b in zip(box.low, box.high, strict=True))
            covered[place] = True
            for axis in range(3):  # tight: a component touches each of the six sides
                for side in (0, -1):
                    assert (mask[place].take(side, axis) == value).any()
        assert covered[mask == value].all()


@given(st.lists(st.tuples(*[st.floats(-30, 60)] * 6), max_size=5))
def test_boxes_end_within_the_scan_or_not_at_all(corners: list[tuple[float, ...]]) -> None:
    boxes = tuple(Box(each[:3], each[3:]) for each in corners)  # type: ignore[arg-type]
    shape = (20, 25, 30)
    try:
        kept, left_out = fit_boxes(boxes, shape)
    except ReadError:
        assert any(min(box.low) < -2 or (np.array(box.high) - shape).max() > 2 for box in boxes)
        return
    assert len(kept) + left_out == len(boxes)
    for box in kept:
        assert all(0 <= a < b <= size for a, b, size in zip(box.low, box.high, shape, strict=True))


def test_a_little_overhang_is_rounding(tmp_path: Path) -> None:
    ref = LabelRef(boxes=(Box((0, -1, 3), (1, 5, 31)), Box((0, 40, 3), (1, 50, 9)), Box((0, 4, 4), (1, 4, 9))))
    labels = attach(flat(), ref)
    assert labels.boxes == (Box((0, 0, 3), (1, 5, 30)),)
    assert labels.left_out == 2
    with pytest.raises(ReadError, match="over the edge"):
        attach(flat(), LabelRef(boxes=(Box((0, 0, 3), (1, 5, 40)),)))
    with pytest.raises(ReadError, match="drawn on 20 x 31 pixels"):
        attach(flat(), LabelRef(boxes=(), size=(20, 31)))
    with pytest.raises(ReadError, match="scan of 4 slices"):
        attach(flat((1, 4, 20, 30)), LabelRef(boxes=(Box((0, 0, 0), (1, 2, 2)),), flat_boxes=True))
    assert attach(flat(), LabelRef(boxes=())).boxes == ()
    assert attach(flat(), LabelRef()).boxes is None


@pytest.mark.parametrize("name", ["m.nii.gz", "m.nrrd", "m.mha"])
def test_a_mask_of_any_format_lands_on_the_scan(tmp_path: Path, name: str) -> None:
    mask = RNG.integers(0, 300, (6, 5, 4)).astype(np.int32)
    (scan,) = read(volume(tmp_path / "scan.nii.gz", RNG.random((6, 5, 4)).astype(np.float32)))
    volume(tmp_path / "m.nii.gz", mask)
    if name != "m.nii.gz":
        sitk.WriteImage(sitk.ReadImage(str(tmp_path / "m.nii.gz")), str(tmp_path / name))
    found = mask_on(scan, tmp_path / name)
    assert found.dtype == np.uint16
    assert np.array_equal(found, mask.T)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2), st.floats(0, 0.3), st.booleans())
def test_grids_apart_are_refused(tmp_path_factory, axis: int, shift: float, turned: bool) -> None:
    folder = tmp_path_factory.mktemp("grid")
    (scan,) = read(volume(folder / "scan.nii", np.zeros((6, 5, 4), np.uint8)))
    affine = AFFINE.copy()
    affine[axis, 3] += shift
    if turned:  # the same corner, mirrored: shape and spacing agree
        affine[:, 0] *= -1
    volume(folder / "m.nii", np.ones((6, 5, 4), np.uint8), affine)
    if shift <= 0.1 * min(scan.spacing) - 1e-4 and not turned:
        assert mask_on(scan, folder / "m.nii").all()
    elif turned or shift >= 0.1 * min(scan.spacing) + 1e-4:
        with pytest.raises(ReadError, match="away from the scan"):
            mask_on(scan, folder / "m.nii")


def test_image_masks(tmp_path: Path) -> None:
    mask = RNG.random((20, 30)) > 0.5
    for content in (mask, mask.astype(np.uint8), mask.astype(np.uint8) * 255, np.dstack([mask * np.uint8(255)] * 3)):
        Image.fromarray(content).save(tmp_path / "m.png")
        found = mask_on(flat(), tmp_path / "m.png")
        assert found.dtype == np.uint8
        assert np.array_equal(found[0], mask)
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "m.png")
    assert not mask_on(flat(), tmp_path / "m.png").any()


def test_masks_that_are_none_say_why(tmp_path: Path) -> None:
    def refused(reason: str, write: Callable[[Path], object], name: str = "m.png") -> None:
        write(tmp_path / name)
        with pytest.raises(ReadError, match=reason) as caught:
            mask_on(flat(), tmp_path / name)
        assert str(tmp_path) not in str(caught.value)

    refused("shape", lambda path: Image.fromarray(np.zeros((20, 31), np.uint8)).save(path))
    refused("colours", lambda path: Image.fromarray(RNG.integers(0, 9, (20, 30, 3)).astype(np.uint8)).save(path))
    refused("mask: ", lambda path: path.write_bytes(b"no image"))
    refused("whole numbers", lambda path: np.save(path, np.full((20, 30), 0.5)), "m.npy")
    refused("whole numbers", lambda path: np.save(path, np.full((20, 30), -1)), "m.npy")
    refused("none for this part", lambda path: np.savez(path, images=np.zeros((3, 20, 30), np.uint8)), "m.npz")


def test_several_masks_are_united(tmp_path: Path) -> None:
    first, second = RNG.random((20, 30)) > 0.8, RNG.random((20, 30)) > 0.8
    for name, mask in (("a", first), ("b", second)):
        Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / f"{name}.png")
    ref = LabelRef(mask=tmp_path / "a.png", more_masks=(tmp_path / "b.png",), boxes_from_mask=True)
    labels = attach(flat(), ref)
    assert labels.mask is not None
    assert np.array_equal(labels.mask[0], first | second)
    assert labels.boxes == boxes_of_mask(labels.mask, {})
    Image.fromarray(second.astype(np.uint8) * 2).save(tmp_path / "b.png")
    with pytest.raises(ReadError, match="more than one class"):
        attach(flat(), ref)


def test_a_series_takes_the_mask_of_its_part_or_the_only_one(tmp_path: Path) -> None:
    series = RNG.integers(0, 9, (6, 5, 4, 3)).astype(np.uint8)
    scans = read(volume(tmp_path / "scan.nii", series))
    volume(tmp_path / "m.nii", series)
    assert len(scans) == 3
    for number, scan in enumerate(scans):
        assert np.array_equal(mask_on(scan, tmp_path / "m.nii"), series[..., number].T)
    volume(tmp_path / "m.nii", series[..., 0])
    assert all(np.array_equal(mask_on(scan, tmp_path / "m.nii"), series[..., 0].T) for scan in scans)


def test_what_the_file_says_stays_unless_the_list_knows_better() -> None:
    own = Labels(classes={"label": "1", "site": "x"}, targets={"age": 3.0})
    scan = Scan(np.zeros((1, 1, 4, 5), np.uint8), (1.0, 1.0, 1.0), labels=own)
    labels = attach(scan, LabelRef(classes={"label": "benign"}, targets={"grade": 2.0}))
    assert labels.classes == {"label": "benign", "site": "x"}
    assert labels.targets == {"age": 3.0, "grade": 2.0}
