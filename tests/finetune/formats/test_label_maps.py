"""What the numbers in the label maps of a whole data set mean, or what has to be typed where they do not say."""

import io

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.cases.label_values import IGNORE
from scanfoundry.finetune.cases.volumes import read_labels, read_one
from scanfoundry.finetune.checks.check import check_cases
from scanfoundry.finetune.checks.findings import findings
from scanfoundry.finetune.config.study import LabelledData
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.formats import discover

RNG = np.random.default_rng(0)
SIDE = 48


def square(k: int, size: int = 12) -> np.ndarray:
    """A bool image with one square, elsewhere for each k."""
    mask = np.zeros((SIDE, SIDE), bool)
    y, x = 2 + (7 * k) % 30, 3 + (11 * k) % 30
    mask[y : y + size, x : x + size] = True
    return mask


def ring(mask: np.ndarray) -> np.ndarray:
    return np.roll(mask, 3, 0) & ~mask


def jpeg(array: np.ndarray, quality: int = 75) -> np.ndarray:
    stream = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return np.asarray(Image.open(stream))


@pytest.fixture
def maps(tmp_path):
    """Save label maps (arrays, or pictures) beside images, as one suffix; gives the folder."""

    def save(masks, suffix=".png", **options):
        for number, mask in enumerate(masks):
            volume = suffix.startswith((".nii", ".nrrd"))
            shape = np.shape(mask) if volume else (SIDE, SIDE)
            for folder, array in (("images", RNG.integers(0, 200, shape).astype(np.uint8)), ("masks", mask)):
                path = tmp_path / folder / f"c{number}{suffix if folder == 'masks' or volume else '.png'}"
                path.parent.mkdir(exist_ok=True)
                if isinstance(array, Image.Image):
                    array.save(path, **options)
                elif volume:
                    nib.save(nib.Nifti1Image(np.asarray(array), np.eye(4), dtype=np.asarray(array).dtype), path)
                elif suffix == ".npy" and folder == "masks":
                    np.save(path, array)
                else:
                    Image.fromarray(np.asarray(array)).save(path, **(options if folder == "masks" else {}))
        return tmp_path

    return save


def check(folder, **task):
    chosen = DetectionTask(**task) if task.pop("detect", False) else SegmentationTask(**task)
    found = discover(LabelledData(path=str(folder), modality="us"), chosen)
    return found, check_cases(found.cases, chosen, found.classes)


def classes_of(folder, **task):
    """{class: (values, voxels)}."""
    found, checked = check(folder, **task)
    case = found.cases[0]
    coded = read_labels(case.target, case.image.read(), checked.values)
    own = checked.voxels[case.key]
    assert [int((coded == k).sum()) for k in range(1, len(own) + 1)] == own
    totals = np.sum([*checked.voxels.values()], 0)
    read = checked.values.read
    return {
        name: ([value for value, code in read.items() if code == k], int(totals[k - 1]))
        for k, name in enumerate(checked.classes, start=1)
    }


def values_in(paint, count=5, dtype=np.uint8):
    return [paint(k).astype(dtype) for k in range(count)]


def test_the_values_that_occur_are_the_classes(maps):
    folder = maps(values_in(lambda k: square(k) * (2 if k % 2 else 5)))
    assert classes_of(folder) == {"label 2": ([2], 288), "label 5": ([5], 432)}


@pytest.mark.parametrize("value", [1, 127, 128, 200, 3])
def test_one_value_is_one_class(maps, value):
    assert classes_of(maps(values_in(lambda k: square(k) * value))) == {f"label {value}": ([value], 720)}


@pytest.mark.parametrize("form", ["grey", "bits", "colours", "palette"])
def test_black_and_white_is_one_class(maps, form):
    def drawn(k):
        if form == "grey":
            return (square(k) * 255).astype(np.uint8)
        if form == "colours":
            return np.dstack([(square(k) * 255).astype(np.uint8)] * 3)
        if form == "bits":
            return Image.fromarray(square(k))
        image = Image.fromarray(square(k).astype(np.uint8), "P")
        image.putpalette([255, 255, 255, 0, 0, 0])
        return image

    masks = [drawn(k) for k in range(5)]
    found, checked = check(maps(masks))
    assert (checked.classes, checked.values.written, checked.notes) == (["label 1"], [1], [])
    assert sum(voxels[0] for voxels in checked.voxels.values()) == 720
    assert read_labels(found.cases[0].target, found.cases[0].image.read(), checked.values).max() == 1


@pytest.mark.parametrize(("quality", "saved"), [(30, ".jpg"), (75, ".jpg"), (95, ".jpg"), (75, ".png"), (40, ".png")])
def test_a_lossy_mask_that_is_clearly_black_and_white_is_cut_and_it_is_said(maps, quality, saved):
    rounds = [np.hypot(*(np.mgrid[:SIDE, :SIDE] - 20 - k)) < 9 + k for k in range(5)]
    greys = [jpeg(mask * 255, quality) for mask in rounds]
    assert len(np.unique(greys)) > 10
    masks = [Image.fromarray((mask * 255).astype(np.uint8)) for mask in rounds] if saved == ".jpg" else greys
    found, checked = check(maps(masks, saved, **({"quality": quality} if saved == ".jpg" else {})))
    assert (checked.classes, checked.values.written) == (["label 1"], [1])
    assert "held greys" in checked.notes[0]
    keys = [case.key for case in found.cases]
    truth = dict(zip(sorted(keys, key=lambda key: found.names[key]), rounds, strict=True))
    for case in found.cases:
        coded = read_labels(case.target, case.image.read(), checked.values)[0]
        assert (coded != truth[case.key]).sum() <= 3


@pytest.mark.parametrize(
    ("name", "paint", "said"),
    [
        ("ignored beside", lambda k: np.where(ring(square(k)), 255, square(k)), "hold 255 beside 1"),
        ("in one file only", lambda k: square(k) * (255 if k == 4 else 1), "hold 255 beside 1"),
        ("all ignored, and two", lambda k: square(k) * (255, 1, 2)[k % 3], "hold 255 beside 1, 2"),
        ("a picture", lambda k: RNG.integers(0, 255, (SIDE, SIDE)), "no regions"),
        ("few dark greys", lambda k: RNG.integers(0, 30, (SIDE, SIDE)), "no regions"),
        ("a ramp", lambda k: np.mgrid[:SIDE, :SIDE].sum(0) * 2, "values that are no regions, from 2 to 188"),
    ],
)
def test_what_has_two_readings_or_none_is_asked(maps, name, paint, said):
    with pytest.raises(UserError, match=said) as refused:
        check(maps(values_in(paint)))
    assert "task.values: {" in str(refused.value)
    assert "\n" not in str(refused.value)
    assert ("task.ignore=255" in str(refused.value)) == ("255 beside" in said)


def three(k):
    mask = square(k, 20) * 127
    mask[square(k + 1, 8)] = 255
    return mask


def test_three_levels_of_a_jpeg_are_asked_and_then_rounded(maps):
    folder = maps([Image.fromarray(three(k).astype(np.uint8)) for k in range(5)], ".jpg", quality=90)
    with pytest.raises(UserError, match="JPEG has changed the label values") as refused:
        check(folder)
    assert "task.values: {127: label 127, 255: label 255}" in str(refused.value)
    found, checked = check(folder, values={127: "liver", 255: "tumour"})
    assert (checked.classes, checked.values.written) == (["liver", "tumour"], [127, 255])
    case = found.cases[0]
    coded = read_labels(case.target, case.image.read(), checked.values)[0]
    truth = three(int(found.names[case.key][1:]))
    assert ((coded > 0) != (truth > 0)).mean() < 0.01
    with pytest.raises(UserError, match="not clearly the stated values"):
        check(folder, values={255: "tumour"})


def test_stated_values_are_believed(maps):
    folder = maps(values_in(lambda k: np.where(ring(square(k)), 255, square(k) * (3 if k % 2 else 4))))
    every = sum(int(ring(square(k)).sum()) for k in range(5))
    assert classes_of(folder, values={3: "a", 4: "b", 255: "c"}) == {
        "a": ([3], 288), "b": ([4], 432), "c": ([255], every),
    }  # fmt: skip
    assert classes_of(folder, values={0: "background", 3: "a", 4: "a"}, ignore=255) == {"a": ([3, 4], 720)}
    assert classes_of(folder, ignore=255) == {"label 3": ([3], 288), "label 4": ([4], 432)}
    found, checked = check(folder, values={3: "a", 4: "b", 255: "ignore"})
    assert checked.ignored == 5
    case = found.cases[0]
    assert (read_labels(case.target, case.image.read(), checked.values) == IGNORE).sum() == ring(square(0)).sum()
    with pytest.raises(UserError, match="label 255, but classes are"):
        check(folder, classes=["a", "b", "c", "d"])
    with pytest.raises(UserError, match=r"not clearly the stated values|holds"):
        check(folder, values={3: "a"}, ignore=255)


def test_names_with_gaps_and_without_a_voxel(maps):
    folder = maps(values_in(lambda k: square(k) * 5))
    assert classes_of(folder, values={2: "two", 5: "five", 7: "seven"}) == {
        "two": ([2], 0), "five": ([5], 720), "seven": ([7], 0),
    }  # fmt: skip


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.int64, np.float32, np.int16])
def test_volumes_of_any_type_hold_large_numbers(maps, dtype):
    def paint(k):
        return np.stack([square(k) * 1017, square(k) * 2035, square(k) * 0], -1)

    folder = maps(values_in(paint, dtype=dtype), ".nii.gz")
    assert classes_of(folder) == {"label 1017": ([1017], 720), "label 2035": ([2035], 720)}
    found, checked = check(folder)
    case = found.cases[0]
    coded = read_labels(case.target, case.image.read(), checked.values)
    assert np.array_equal(checked.values.decode(coded), case.target.read().voxels[0])
    assert checked.values.decode(coded).dtype == np.uint16


def test_many_classes_that_are_regions(maps):
    def organs(k):
        volume = np.zeros((40, 12, 12), np.uint8)
        for organ in range(117):
            place = (organ % 10) * 4, (organ // 10 // 4) * 4, (organ // 10 % 4) * 3
            volume[place[0] : place[0] + 4, place[1] : place[1] + 4, place[2] : place[2] + 3] = organ + 1
        return volume

    assert len(classes_of(maps([organs(0)] * 3, ".nii.gz"))) == 117


def blurred(k):
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(np.stack([square(k, 20) * 255.0] * 6, -1), 2).astype(np.uint8)


@pytest.mark.parametrize(
    ("paint", "said"),
    [
        (lambda k: np.stack([square(k) * 0.7] * 3, -1).astype(np.float32), "whole numbers.*probabilities"),
        (lambda k: np.stack([square(k) * 2.5] * 3, -1).astype(np.float32), "whole numbers"),
        (lambda k: np.stack([square(k) * -1] * 3, -1).astype(np.int16), "holds -1; .*task.ignore=-1"),
        (lambda k: np.where(np.stack([square(k)] * 3, -1), np.nan, 0).astype(np.float32), "NaN"),
        (blurred, "no regions|no classes"),
        (lambda k: np.arange(SIDE * SIDE * 2).reshape(SIDE, SIDE, 2).astype(np.int32) // 4, "values"),
    ],
)
def test_volumes_that_are_no_label_maps(maps, paint, said):
    with pytest.raises(UserError, match=said) as refused:
        check(maps([paint(k) for k in range(3)], ".nii.gz"))
    assert "c" in str(refused.value).rpartition("masks/")[2]


def test_minus_one_may_be_ignored(maps):
    def paint(k):
        return np.stack([np.where(ring(square(k)), -1, square(k))] * 2, -1)

    found, checked = check(maps(values_in(paint, dtype=np.int16), ".nii.gz"), ignore=-1)
    assert (checked.classes, checked.ignored) == (["label 1"], 5)
    coded = read_labels(found.cases[0].target, found.cases[0].image.read(), checked.values)
    assert (coded == IGNORE).any()


def test_instances_are_findings_and_no_classes(maps):
    def cells(k):
        numbers = np.zeros((SIDE, SIDE), np.uint16)
        for cell in range(144):
            numbers[4 * (cell // 12) : 4 * (cell // 12) + 3, 4 * (cell % 12) : 4 * (cell % 12) + 3] = 300 * k + cell + 1
        return numbers

    folder = maps([cells(k) for k in range(3)])
    _, checked = check(folder, detect=True, masks="instances", min_voxels=1)
    assert checked.empty == 0
    with pytest.raises(UserError, match=r"task\.masks=instances"):
        check(folder)


def test_pictures_of_0_and_255_beside_0_and_1_are_one_class_when_typed_so(maps):
    folder = maps(values_in(lambda k: square(k) * (255 if k == 4 else 1)))
    with pytest.raises(UserError, match=r"task\.values: \{1: foreground, 255: foreground\}"):
        check(folder)
    values, voxels = classes_of(folder, values={1: "foreground", 255: "foreground"})["foreground"]
    assert values == [1, 255]
    assert voxels == sum(int(square(k).sum()) for k in range(5))


def test_masks_of_findings_in_a_lossy_file(maps):
    folder = maps([Image.fromarray((square(k) * 255).astype(np.uint8)) for k in range(5)], ".jpg")
    found, checked = check(folder, detect=True)
    assert checked.empty == 0
    for case in found.cases:
        assert len(findings(case, case.image.read(), DetectionTask(), ["finding"])) == 1


def test_findings_beside_255_are_asked(maps):
    folder = maps(values_in(lambda k: np.where(ring(square(k)), 255, square(k))))
    with pytest.raises(UserError, match="hold 255 beside 1: findings, or"):
        check(folder, detect=True)
    assert check(folder, detect=True, masks="instances")[1].empty == 0


def test_an_empty_map_is_no_mistake_but_counted(maps):
    _, checked = check(maps(values_in(lambda k: square(k) * (k % 2) * 255)))
    assert checked.empty == 3
    assert checked.classes == ["label 1"]


def test_several_masks_of_one_scan_count_like_one(tmp_path):
    for k in range(4):
        for folder in ("images", "masks"):
            (tmp_path / folder).mkdir(exist_ok=True)
        Image.fromarray(RNG.integers(0, 99, (SIDE, SIDE)).astype(np.uint8)).save(tmp_path / "images" / f"b{k}.png")
        Image.fromarray((square(k) * 255).astype(np.uint8)).save(tmp_path / "masks" / f"b{k}_mask.png")
        if k % 2:
            Image.fromarray((square(k + 2) * 255).astype(np.uint8)).save(tmp_path / "masks" / f"b{k}_mask_1.png")
    assert [*classes_of(tmp_path)] == ["label 1"]


def test_palettes_are_read_by_index_whatever_they_show(maps):
    def drawn(k, colours, **info):
        image = Image.fromarray((square(k) * 1 + square(k + 1, 5) * 1).astype(np.uint8), "P")
        image.putpalette(colours)
        return image

    colours = [0, 0, 0, 0, 0, 0, 250, 0, 0]
    folder = maps([drawn(k, colours) for k in range(4)], transparency=0)
    assert [*classes_of(folder)] == ["label 1", "label 2"]
    with pytest.raises(UserError, match="transparent"):
        read_one(folder / "masks" / "c0.png")


def test_palettes_that_differ_are_asked(maps):
    """A program that makes a palette for each file: black is 0 in one, 1 in the next."""

    def drawn(k):
        index = (square(k) if k else ~square(k)).astype(np.uint8)
        image = Image.fromarray(index, "P")
        image.putpalette([0, 0, 0, 255, 255, 255] if k else [255, 255, 255, 0, 0, 0])
        return image

    folder = maps([drawn(k) for k in range(4)])
    with pytest.raises(UserError, match=r"draws the value 0 in the colour .* name them: task.values: \{1: label 1\}"):
        check(folder)
    assert classes_of(folder, values={1: "a"})["a"][0] == [1]
