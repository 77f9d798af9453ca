import pytest
import torch

from scanforge.backbones.registry import build
from scanforge.backbones.stunet import STUNetConfig
from scanforge.finetune.heads.segmentation import SegmentationModel
from scanforge.finetune.inference import volume_logits

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = build(STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3))
    return SegmentationModel(encoder, 3, is_2d=False).eval()


def test_equals_the_whole_volume_where_it_fits(model):
    image = torch.randn(1, 16, 16, 20)
    with torch.inference_mode():
        whole = model(image[None])[0]
    assert torch.allclose(volume_logits(model, image, 0.0, (16, 16, 20), 0.5, [()], CPU), whole, atol=1e-4)


def test_a_smaller_scan_is_padded_and_cut_back(model):
    image = torch.randn(1, 13, 16, 18)
    padded = torch.full((1, 1, 16, 16, 20), -2.0)
    padded[0, :, 1:14, :, 1:19] = image
    with torch.inference_mode():
        whole = model(padded)[0, :, 1:14, :, 1:19]
    assert torch.allclose(volume_logits(model, image, -2.0, (16, 16, 20), 0.5, [()], CPU), whole, atol=1e-4)


def test_windows_of_a_local_network_join_without_a_seam():
    torch.manual_seed(1)
    local = torch.nn.Conv3d(1, 2, 1)
    image = torch.randn(1, 20, 33, 27)
    logits = volume_logits(local, image, 0.0, (8, 16, 16), 0.5, [()], CPU)
    assert torch.allclose(logits, local(image[None])[0], atol=1e-4)


def test_mirroring_makes_a_prediction_turn_with_the_image(model):
    image = torch.randn(1, 16, 16, 20)
    mirrors = [(), (1,), (2,), (1, 2)]
    straight = volume_logits(model, image, 0.0, (16, 16, 20), 0.5, mirrors, CPU)
    flipped = volume_logits(model, image.flip(2), 0.0, (16, 16, 20), 0.5, mirrors, CPU)
    assert torch.allclose(straight, flipped.flip(2), atol=1e-4)
    alone = volume_logits(model, image, 0.0, (16, 16, 20), 0.5, [()], CPU)
    assert not torch.allclose(straight, alone, atol=1e-3)
