"""Images in colour: what the network gets of them, by what was said and by what it starts from."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.run_study import prepare, run
from scanfoundry.finetune.study.colour import input_channels

TINY = ResEncConfig(features=(8, 12, 16), blocks=(1, 1, 1), strides=((2, 2, 2), (2, 2, 2)))


def written(root, channels):
    """20 images of 40 x 48 with `channels` different colours, of two classes."""
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    with (root / "labels.csv").open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["id", "class"])
        for i in range(20):
            image = rng.integers(0, 256, (40, 48, channels), dtype=np.uint8)
            Image.fromarray(np.broadcast_to(image, (40, 48, 3)).copy()).save(root / "images" / f"s{i:02d}.png")
            rows.writerow([f"s{i:02d}", "lesion" if i % 2 else "none"])
    return root


@pytest.fixture(scope="module")
def coloured(tmp_path_factory):
    return written(tmp_path_factory.mktemp("coloured"), 3)


@pytest.fixture
def checkpoint(tmp_path):
    torch.manual_seed(0)
    info = ReleaseInfo(backbone=TINY)
    save_release(tmp_path / "release", {"encoder": build(TINY).state_dict()}, info, [])
    return tmp_path / "release"


def config_of(study, data, colour=None, **others):
    where = {"images": data / "images", "labels": data / "labels.csv", "modality": "dermoscopy", "colour": colour}
    return study("classification", data, data=where, **others)


@pytest.mark.parametrize(("colour", "channels"), [(None, 3), (True, 3), (False, 1)])
def test_from_scratch_colours_are_kept_unless_the_user_says_otherwise(study, coloured, caplog, colour, channels):
    spec = prepare(config_of(study, coloured, colour)).spec
    assert (spec.backbone.in_channels, spec.grey) == (channels, "luminance")
    assert ("data.colour=false" in caplog.text) == (colour is None)


def test_grey_images_with_three_equal_channels_stay_grey(study, tmp_path):
    grey = written(tmp_path / "grey", 1)
    assert prepare(config_of(study, grey)).spec.backbone.in_channels == 1
    with pytest.raises(UserError, match="most training images are grey"):
        prepare(config_of(study, grey, colour=True))


def test_a_checkpoint_sees_what_it_was_trained_on_unless_the_user_says_otherwise(study, coloured, checkpoint, caplog):
    kept = prepare(config_of(study, coloured, backbone=None, checkpoint=checkpoint))
    assert kept.spec.backbone.in_channels == 1
    assert "the checkpoint takes them as grey; data.colour=true" in caplog.text
    result = run(config_of(study, coloured, colour=True, backbone=None, checkpoint=checkpoint))
    (transferred,) = json.loads(result.results.read_text())["setup"]["transferred"]
    assert transferred.startswith("encoder")
    assert json.loads((result.report.parent / "model.json").read_text())["backbone"]["in_channels"] == 3


def test_what_contradicts_is_refused_in_one_line():
    with pytest.raises(UserError, match="the network takes 3 channels"):
        input_channels(False, 3, coloured=True, model="")
    assert input_channels(None, 3, coloured=True, model="checkpoint") == (3, "")
    assert input_channels(None, 1, coloured=True, model="teacher")[1].endswith("the teacher takes them as grey")


def test_several_contrasts_are_no_colours(study, volumes, tmp_path):
    for image in sorted((volumes / "images").iterdir())[:12]:
        folder = tmp_path / "in" / image.name.removesuffix("_0000.nii.gz")
        folder.mkdir(parents=True)
        (folder / "t1.nii.gz").symlink_to(image)
        (folder / "t2.nii.gz").symlink_to(image)
        (folder / "seg.nii.gz").symlink_to(volumes / "labels" / f"{folder.name}.nii.gz")
    channels = {"t1": "*/t1.nii.gz", "t2": "*/t2.nii.gz"}
    where = {"path": str(tmp_path / "in"), "labels": "*/seg.nii.gz", "channels": channels, "modality": "mr"}
    with pytest.raises(UserError, match=r"data\.colour is of images of one channel"):
        prepare(study("segmentation", volumes, data=where | {"colour": True}))
