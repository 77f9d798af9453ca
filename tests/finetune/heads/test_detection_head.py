import numpy as np
import pytest
import torch

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import backbones, build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.finetune.boxes.anchors import plan_anchors, plan_strides
from scanfoundry.finetune.heads.detection import DetectionModel
from scanfoundry.finetune.heads.pyramid import WIDTH, Pyramid, available_strides

STUNET = STUNetConfig(size="S", strides=((2, 2, 2),) * 3 + ((1, 1, 1),) * 2)
BACKBONES = {
    "mednext": MedNeXtConfig(size="S"),
    "primus": PrimusConfig(size="S", grid=(2, 2, 3)),
    "resenc": ResEncConfig(features=(8, 12, 16, 16), blocks=(1, 2, 1, 1), strides=((2, 2, 2),) * 3),
    "stunet": STUNET,
    "vit": ViTConfig(size="Ti", patch_2d=(8, 8)),
}
SHAPES = {True: (1, 32, 48), False: (16, 16, 24)}


def model_of(config, is_2d, n_classes=2, side=10.0):
    encoder = build(config)
    sizes = np.full((4, 2 if is_2d else 3), side)
    strides = plan_strides(sizes, available_strides(encoder, is_2d), SHAPES[is_2d])
    return DetectionModel(encoder, n_classes, is_2d, strides, plan_anchors(sizes, strides)[0], 0.0, 5)


def test_every_backbone_is_tried():
    assert BACKBONES.keys() == backbones().keys()


@pytest.mark.parametrize("is_2d", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_detects_with_and_without_boxes(name, is_2d):
    axes = 2 if is_2d else 3
    model = model_of(BACKBONES[name], is_2d).train()
    box, label = torch.tensor([[2.0] * axes + [12.0] * axes]), torch.tensor([1])
    images = torch.randn(2, 1, *SHAPES[is_2d])
    mixed = model.losses(images, [box, box[:0]], [label, label[:0]])
    none = model.losses(images, [box[:0], box[:0]], [label[:0], label[:0]])
    assert torch.isfinite(mixed)
    assert torch.isfinite(none)
    (mixed + none).backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in grads)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.encoder_parameters())
    with torch.inference_mode():
        boxes, scores, labels = model.eval()(images[:1])[0]
    assert boxes.shape == (len(scores), 2 * axes)
    assert 0 < len(scores) <= 5
    assert set(labels.tolist()) <= {0, 1}


@pytest.mark.parametrize("is_2d", [True, False])
@pytest.mark.parametrize(
    "config", [ViTConfig(size="Ti"), PrimusConfig(size="S", grid=(2, 2, 3)), STUNET], ids=["vit", "primus", "stunet"]
)
def test_maps_have_the_planned_strides_also_finer_than_a_vits(config, is_2d):
    encoder = build(config)
    shape = (1, 32, 48) if is_2d else (16, 32, 48)
    strides = plan_strides(np.full((9, 2 if is_2d else 3), 6.0), available_strides(encoder, is_2d), shape)
    assert strides[0] == ((1, 2, 2) if is_2d else (2, 2, 2))
    with torch.inference_mode():
        maps = Pyramid(encoder, is_2d, strides)(torch.randn(1, 1, *shape[1 if is_2d else 0 :]))
    for level, stride in zip(maps, strides, strict=True):
        expected = [-(-n // s) for n, s in zip(shape, stride, strict=True)][1 if is_2d else 0 :]
        assert list(level.shape) == [1, WIDTH, *expected]


def test_a_vits_fine_map_tells_places_of_one_patch_apart():
    encoder = build(ViTConfig(size="Ti"))
    pyramid = Pyramid(encoder, True, [(1, 4, 4), (1, 8, 8), (1, 16, 16)])
    with torch.inference_mode():
        fine = pyramid(torch.randn(1, 1, 32, 32))[0]
    cell = fine[0, :, :4, :4].flatten(1)  # one patch of 16 x 16
    assert torch.pdist(cell.T).min() > 1e-4


def test_anchors_are_as_large_as_planned_also_in_bfloat16():
    """MONAI rounds half sizes, and makes anchors in the maps' type: 129.5 would be 130."""
    encoder = build(STUNET)
    model = DetectionModel(encoder, 1, True, [(1, 4, 4), (1, 8, 8)], [[[5.0, 3.0]], [[9.0, 7.0]]], 0.0, 5)
    box, label = torch.tensor([[2.0, 2, 12, 12]]), torch.tensor([0])
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train().losses(torch.randn(1, 1, 1, 192, 192), [box], [label])
    assert torch.isfinite(loss)
    (anchors,) = model.detector.anchors
    assert anchors.dtype == torch.float32
    fine = anchors[: 48 * 48]
    assert (fine[:, 2:] - fine[:, :2]).tolist() == [[5.0, 3.0]] * len(fine)
    middles = (fine[:, 2:] + fine[:, :2]) / 2
    assert middles[0].tolist() == [2.0, 2.0]  # of the first cell
    assert middles[-1].tolist() == [190.0, 190.0]


def test_the_head_starts_sure_of_nothing():
    model = model_of(STUNET, True, n_classes=3).eval()
    with torch.inference_mode():
        _, scores, _ = model(torch.randn(1, 1, 1, 32, 48))[0]
    assert scores.max() < 0.03
    assert scores.min() > 0.005


def test_gradients_are_right_where_bfloat16_would_give_left_over_memory():
    """A map of depth 2, see `gradients_fail`: not only finite, but those of float32."""
    model = model_of(STUNET, False).train()
    box, label = torch.tensor([[2.0, 2, 2, 12, 12, 12]]), torch.tensor([1])
    image = torch.randn(1, 1, *SHAPES[False])
    grads = []
    for half in (True, False):
        torch.manual_seed(0)  # of the sampler
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            model.losses(image, [box], [label]).backward()
        grads.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for name, grad in grads[0].items():
        torch.testing.assert_close(grad, grads[1][name], rtol=1e-3, atol=1e-5)
