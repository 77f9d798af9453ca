from dataclasses import replace

import numpy as np
import pytest
import torch

from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.datasets.readers import Scan
from scanfoundry.finetune.config.study import AugmentationConfig, InferenceConfig
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.plan import Fingerprint, Plan
from scanfoundry.finetune.sample import fitted_shape, upright
from scanfoundry.finetune.spec import Spec
from scanfoundry.finetune.tasks.segmentation import Segmentation


def plan(patch, spacing=(1.0, 1.0, 1.0)):
    found = Fingerprint(scans=1, shape=(1, 1, 1), spacing=spacing, is_2d=patch[0] == 1)
    return Plan(spacing=spacing, patch=patch, batch=1, fingerprint=found)


def test_slices_are_shown_as_radiologists_look_at_them():
    grid = np.array([[0, 1], [2, 3]])  # (H, W)
    assert upright(grid, "", 0).tolist() == [[0, 1], [2, 3]]
    assert upright(grid, "SPL", 0).tolist() == [[0, 1], [2, 3]]  # posterior down, left on the right: as it is
    assert upright(grid, "SAR", 0).tolist() == [[3, 2], [1, 0]]
    assert upright(grid, "SAR", 1).tolist() == [[3, 2], [1, 0]]  # coronal (D, W): superior up
    assert upright(grid, "IPL", 2).tolist() == [[0, 1], [2, 3]]  # sagittal (D, H): the front on the left


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((1, 200, 100), (1, 1, 1), (1, 64, 32)),
        ((1, 20, 40), (1, 1, 1), (1, 32, 64)),
        ((1, 40, 40), (1, 2, 1), (1, 64, 32)),
    ],
)
def test_a_scan_fits_the_patch_at_its_own_aspect(shape, spacing, expected):
    assert fitted_shape(shape, spacing, plan((1, 64, 64))) == expected


def adapter(patch, channels, modalities=()):
    return Segmentation(
        Spec(
            task=SegmentationTask(),
            classes=["organ"],
            channels=channels,
            modality="mr",
            modalities=list(modalities),
            intensity=IntensityConfig(),
            backbone=STUNetConfig(size="S", in_channels=len(channels)),
            plan=plan(patch),
            inference=InferenceConfig(),
        )
    )


def volume(shape, seed=0):
    return Scan(np.random.default_rng(seed).uniform(-500, 500, (1, *shape)).astype(np.float32), (1.0, 1.0, 1.0))


def test_slices_and_volumes_are_not_mistaken_for_each_other():
    with pytest.raises(UserError, match="the scan is a single slice, this model takes volumes"):
        adapter((16, 16, 16), ["image"]).unlabelled(volume((1, 16, 16)))
    with pytest.raises(UserError, match="the scan is a volume of 9 slices, this model takes single slices"):
        adapter((1, 16, 16), ["image"]).unlabelled(volume((9, 16, 16)))


def test_frames_of_a_video_are_images_to_a_segmenter_of_images():
    frames = replace(volume((9, 16, 16)), frames=True)
    assert adapter((1, 16, 16), ["image"]).unlabelled(frames).image.shape == (1, 9, 16, 16)
    with pytest.raises(UserError, match="this model takes volumes"):
        adapter((16, 16, 16), ["image"]).unlabelled(replace(volume((1, 16, 16)), frames=True))


def test_channels_of_two_modalities_and_a_missing_one():
    task = adapter((8, 16, 16), ["ct", "t1", "t2"], ["ct", "mr", "mr"])
    ct, t1 = volume((8, 9, 10)), volume((8, 9, 10), 1)
    sample = task.unlabelled([ct, t1, None])
    assert sample.image.shape == (3, 8, 9, 10)
    assert np.allclose(sample.image[0].numpy(), ct.voxels[0] / 1000, atol=1e-6)
    assert (sample.image[2] == sample.fill).all()
    assert sample.present is not None
    assert sample.present.tolist() == [True, True, False]
    for given in ([ct, t1], [None, None, None]):
        with pytest.raises(UserError, match=r"takes 3 channels \(ct, t1, t2\)"):
            task.unlabelled(given)


def test_intensities_vary_by_channel_and_missing_ones_stay_empty():
    task = adapter((8, 16, 16), ["t1", "t2"])
    whole, half = (
        task.unlabelled([volume((8, 16, 16)), volume((8, 16, 16), 1)]),
        task.unlabelled([volume((8, 16, 16), 2), None]),
    )
    images = torch.stack([whole.image, half.image])
    config = AugmentationConfig(probability=1.0, channel_dropout=0.0)
    found = task.varied(images, [whole, half], np.random.default_rng(0), config)
    assert (found[1, 1] == half.fill).all()
    assert not torch.equal(found[0], images[0])
    again = task.varied(images, [whole, half], np.random.default_rng(0), config)
    assert torch.equal(found, again)
    hidden = task.varied(
        images, [whole, half], np.random.default_rng(0), config.model_copy(update={"channel_dropout": 0.9})
    )
    assert (hidden[1, 0] != half.fill).any()  # the only one that is there
    assert sum(bool((hidden[0, c] == np.float32(whole.fill)).all()) for c in (0, 1)) == 1
