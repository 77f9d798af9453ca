"""Files to predict on, put together to cases."""

from dataclasses import dataclass

import numpy as np

from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.cases.sources import scan_file
from scanfoundry.finetune.formats.inputs import group_channels


@dataclass(frozen=True)
class Named:
    """A source that is not read."""

    name: str

    def read(self) -> Scan:
        raise AssertionError(self.name)


def grouped(*names, channels=("t1", "t1gd", "flair")):
    cases, strange = group_channels({name: Named(name) for name in names}, channels)
    return {case: [image and image.name for image in images] for case, images in cases.items()}, strange


def test_the_four_ways_of_naming_channels():
    for files in (
        ("p/x_0000.nii.gz", "p/x_0001.nii.gz", "p/x_0002.nii.gz"),
        ("p/x_t1.nii.gz", "p/x-t1gd.nii.gz", "p/x_FLAIR.nii.gz"),
        ("p/x/t1.nii.gz", "p/x/t1gd.nii.gz", "p/x/flair.nii.gz"),
        ("t1/p/x.nii.gz", "t1gd/p/x.nii.gz", "flair/p/x.nii.gz"),
    ):
        assert grouped(*files) == ({"p/x": list(files)}, {})


def test_missing_and_strange_files():
    cases, strange = grouped("a/t1.nii.gz", "a/flair.nii.gz", "b/t1gd.nii.gz", "a/seg.nii.gz")
    assert cases == {"a": ["a/t1.nii.gz", None, "a/flair.nii.gz"], "b": [None, "b/t1gd.nii.gz", None]}
    assert list(strange) == ["a/seg.nii.gz"]
    assert strange["a/seg.nii.gz"].startswith("seg.nii.gz is of none of the channels t1, t1gd, flair")


def test_two_files_of_one_channel_cost_that_case_alone():
    cases, strange = grouped("a/t1.nii.gz", "a_t1.nii.gz", "a/flair.nii.gz", "b/t1.nii.gz")
    assert cases == {"b": ["b/t1.nii.gz", None, None]}
    assert set(strange) == {"a/t1.nii.gz", "a_t1.nii.gz", "a/flair.nii.gz"}
    assert set(strange.values()) == {"case 'a' has two files for channel 't1'"}


def test_one_channel_takes_every_file():
    assert grouped("x_0000.png", "y.png", channels=("image",)) == (
        {"x_0000.png": ["x_0000.png"], "y.png": ["y.png"]},
        {},
    )


def test_volumes_of_a_4d_file_are_its_channels(tmp_path, save, cube):
    path = save(tmp_path / "x.nii.gz", np.stack([cube(1), cube(2)], -1))
    cases, strange = group_channels({"x.nii.gz": scan_file(path)}, ["a", "b"])
    assert [int(image.read().voxels.max()) for image in cases["x"]] == [1, 2]
    assert strange == {}


def test_suffixes_in_capitals_and_decomposed_names_are_the_same_case():
    assert grouped("x_T1.NII.GZ", "x_t1gd.nii.gz")[0] == {"x": ["x_T1.NII.GZ", "x_t1gd.nii.gz", None]}
    composed, decomposed = "Ko\u0308ln_t1.nii.gz", "K\u00f6ln_flair.nii.gz"
    assert grouped(composed, decomposed)[0] == {"K\u00f6ln": [composed, None, decomposed]}


def test_a_number_and_a_name_may_not_say_different_channels():
    for file in ("x_flair_0000.nii.gz", "flair/x_0000.nii.gz", "x/flair_0000.nii.gz"):
        assert "is channel 't1' by its number and 'flair' by its name" in grouped(file)[1][file]
    both = ("t1/x_0000.nii.gz", "flair/x_0002.nii.gz")
    assert grouped(*both) == ({"x": [both[0], None, both[1]]}, {})


def test_numbers_beyond_the_channels_are_of_none():
    assert grouped("x_0000.png", "x_0001.png", "x_0002.png", "x_0003.png")[1].keys() == {"x_0003.png"}
