"""Grad-CAM++ against a plain loop, against MONAI's, and against the truth of a toy problem."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.protocol import Encoder, masked_mean
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.finetune.drawing import overlays
from scanfoundry.finetune.drawing.overlays import overlay
from scanfoundry.finetune.heads.classification import ClassificationModel
from scanfoundry.finetune.heads.whole_scan import WholeScanModel
from scanfoundry.finetune.inference.saliency import grad_cam_pp, picture_with_saliency, saliency, scan_saliency
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.spec import Spec

CPU = torch.device("cpu")
BACKBONES = {
    "stunet": STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3),
    "mednext": MedNeXtConfig(size="S"),
    "resenc": ResEncConfig(features=(8, 16, 32), blocks=(1, 1, 1), strides=((2, 2, 2),) * 2),
    "vit": ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(8, 8, 8), registers=2),
    "primus": PrimusConfig(size="S", patch=(8, 8, 8), grid=(2, 4, 4)),
}


class Plain(Encoder):
    """Two convolutions with ReLU: what the paper looks at."""

    def __init__(self, width=8, stride=2):
        super().__init__()
        self.in_channels, self.feature_channels, self.pooled_dim = 1, (width,), width
        self.stride = stride
        self.first, self.second = nn.Conv3d(1, width, 3, stride, 1), nn.Conv3d(width, width, 3, 1, 1)

    def forward(self, x):
        return [F.relu(self.second(F.relu(self.first(x))))]

    def pooled(self, x, valid=None):
        return masked_mean(self.forward(x)[-1], valid)

    def feature_strides(self, is_2d):
        return ((self.stride,) * 3,)

    def check_input(self, shape):
        pass


class OfTheMean(WholeScanModel):
    """A linear layer on the mean over space, with LayerNorm: each place of a map counts alike."""

    def __init__(self, encoder, classes):
        super().__init__(encoder)
        self.norm, self.linear = nn.LayerNorm(encoder.pooled_dim), nn.Linear(encoder.pooled_dim, classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def head(self, features):
        return self.linear(self.norm(features.mean((2, 3, 4))))


def classifier(encoder, classes=2, seed=0):
    torch.manual_seed(seed)
    model = ClassificationModel(encoder, classes)
    nn.init.normal_(model.linear.weight)
    return model.eval()


def naive(a, g):
    """The map by the formulae, number by number; a, g float64 (F, d, h, w)."""
    found = np.zeros(a.shape[1:])
    for k in range(len(a)):
        total = sum(a[(k, *p)] for p in np.ndindex(*a.shape[1:]))
        weight = 0.0
        for p in np.ndindex(*a.shape[1:]):
            d = g[(k, *p)]
            below = 2 * d**2 + d**3 * total
            weight += (d**2 / below if below else 0.0) * max(d, 0.0)
        for p in np.ndindex(*a.shape[1:]):
            found[p] += weight * a[(k, *p)]
    return np.maximum(found, 0)


@pytest.mark.parametrize("seed", range(5))
def test_the_map_is_that_of_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    a, g = rng.normal(size=(5, 2, 4, 3)), rng.normal(size=(5, 2, 4, 3)) * 10.0 ** rng.integers(-6, 3)
    g[0] = 0
    positive = np.maximum(a, 0)
    found = grad_cam_pp(torch.from_numpy(positive), torch.from_numpy(g))
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), naive(positive, g), rtol=1e-10)
    # A map of both signs is the two maps whose difference it is.
    signed = grad_cam_pp(torch.from_numpy(a), torch.from_numpy(g))
    expected = naive(np.concatenate([positive, positive - a]), np.concatenate([g, -g]))
    np.testing.assert_allclose(signed.numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("shape", [(1, 16, 24), (8, 12, 16)])
def test_the_map_is_monais_where_monais_works(shape):
    from monai.visualize import GradCAMpp

    class Hookable(nn.Module):
        """The same network with the feature map as the output of a module."""

        def __init__(self, model):
            super().__init__()
            encoder = model.encoder
            self.features = nn.Sequential(encoder.first, nn.ReLU(), encoder.second, nn.ReLU())
            self.norm, self.linear = model.norm, model.linear

        def forward(self, x):
            return self.linear(self.norm(self.features(x).mean((2, 3, 4))))

    # Of the mean alone: where a gradient differs from place to place MONAI sums A g^3, the paper g^3 sum A.
    torch.manual_seed(0)
    model = OfTheMean(Plain(), 2).eval()
    nn.init.normal_(model.linear.weight)
    model.linear.weight.data *= 10  # MONAI adds 1e-7 to the denominator: its gradients must not be tiny
    image = torch.randn(1, 1, *shape)
    for k in range(2):
        theirs = GradCAMpp(Hookable(model), "features", postprocessing=lambda x: x)(image, class_idx=k)[0, 0].detach()
        assert theirs.max() > 0
        assert torch.allclose(saliency(model, image, k), theirs / theirs.max(), atol=2e-3)


@pytest.mark.parametrize("shape", [(1, 32, 32), (16, 32, 32)])
@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_has_a_map_of_both_classes(name, shape):
    model = classifier(build(BACKBONES[name]))
    image = torch.randn(1, 1, *shape)
    before = model(image)
    maps = [saliency(model, image, k) for k in range(2)]
    for found in maps:
        assert found.shape == shape
        assert torch.isfinite(found).all()
        assert found.min() >= 0
        assert float(found.max()) in (0.0, 1.0)
    assert max(float(found.max()) for found in maps) == 1
    assert not torch.equal(*maps)
    # The model is as it was: same outputs, no gradients left, its own forward back.
    assert torch.equal(model(image), before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "forward" not in vars(model.encoder)


def test_a_frozen_model_in_a_prediction_has_a_map_too():
    model = classifier(build(BACKBONES["resenc"]))
    expected = saliency(model, torch.ones(1, 1, 1, 32, 32).cumsum(-1), 0)
    model.requires_grad_(False)
    with torch.inference_mode():
        assert torch.equal(saliency(model, torch.ones(1, 1, 1, 32, 32).cumsum(-1), 0), expected)


def test_no_gradient_gives_no_map():
    model = classifier(Plain())
    nn.init.zeros_(model.linear.weight)
    assert not saliency(model, torch.randn(1, 1, 4, 8, 8), 0).any()
    zeros = torch.zeros(3, 2, 2, 2)
    assert not grad_cam_pp(zeros, torch.ones_like(zeros)).any()
    assert not grad_cam_pp(torch.ones_like(zeros), zeros).any()
    tiny = grad_cam_pp(torch.ones(1, 2, 2, 2), torch.full((1, 2, 2, 2), 1e-30))
    assert torch.isfinite(tiny).all()
    assert (tiny > 0).all()
    model.linear.weight.data.fill_(1e4)  # exp(score) would be infinite
    model.norm.weight.data.copy_(torch.linspace(0, 1, 16))
    assert torch.isfinite(saliency(model, torch.randn(1, 1, 4, 8, 8), 0)).all()


@pytest.fixture(scope="module", params=[ClassificationModel, OfTheMean])
def toy_head(request):
    return request.param


@pytest.fixture(scope="module", params=[(1, 24, 24), (12, 16, 16)], ids=["2d", "3d"])
def toy(request, toy_head):
    """A small network that has learned in seconds: class 1 has a bright cube."""
    shape = request.param
    rng = np.random.default_rng(0)
    side = np.minimum(np.array(shape), 6)

    def draw(label):
        image = rng.normal(0, 0.3, shape).astype(np.float32)
        low = [int(rng.integers(0, n - s + 1)) for n, s in zip(shape, side, strict=True)]
        place = tuple(slice(a, a + s) for a, s in zip(low, side, strict=True))
        if label:
            image[place] += 2
        return image, place

    torch.manual_seed(0)
    model = toy_head(Plain(width=8, stride=2), 2)
    optimiser = torch.optim.AdamW(model.parameters(), 0.02)
    for _ in range(60):
        labels = torch.arange(16) % 2
        images = torch.from_numpy(np.stack([draw(int(k))[0] for k in labels]))[:, None]
        optimiser.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimiser.step()
    return model.eval(), draw


def test_the_map_lies_on_what_decides(toy):
    model, draw = toy
    for _ in range(5):
        image, place = draw(1)
        whole = torch.from_numpy(image)[None, None]
        assert model(whole).argmax() == 1
        found = saliency(model, whole, 1).numpy()
        near = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in place)  # two voxels: one cell of the feature map
        elsewhere = np.ones(found.shape, bool)
        elsewhere[near] = False
        assert found[near].mean() > 5 * found[elsewhere].mean()
        if isinstance(model, OfTheMean):  # the maximum lets channels vote that are alive elsewhere too
            assert found[near].sum() > 0.8 * found.sum()
        peak = np.array(np.unravel_index(found.argmax(), found.shape))
        assert all(s.start - 1 <= p <= s.stop for p, s in zip(peak, near, strict=True))


def spec(patch):
    found = {"scans": 1, "shape": patch, "spacing": (1, 1, 1), "is_2d": patch[0] == 1}
    return Spec.model_validate(
        {
            "task": {"name": "classification"}, "classes": ["a", "b"], "modality": "mr", "intensity": {},
            "backbone": BACKBONES["resenc"].model_dump(), "inference": {},
            "plan": {"spacing": (1, 1, 1), "patch": patch, "batch": 1, "fingerprint": found},
        }
    )  # fmt: skip


@pytest.mark.parametrize(("patch", "fitted"), [((1, 24, 24), (1, 24, 17)), ((16, 24, 24), (11, 24, 20))])
def test_the_map_lies_where_the_scan_does(patch, fitted):
    """Of a scan padded into its patch, the map is that of the patch, cut back."""
    adapter = adapter_for(spec(patch))
    models = [classifier(build(BACKBONES["resenc"]), seed=s) for s in (0, 1)]
    sample = Sample(torch.randn(1, *fitted), -3.0, fitted, (1.0, 1.0, 1.0), "", 0, 0)
    low = [(p - n) // 2 for p, n in zip(patch, fitted, strict=True)]
    place = tuple(slice(a, a + n) for a, n in zip(low, fitted, strict=True))
    padded = torch.full((1, 1, *patch), -3.0)
    padded[0, 0][place] = sample.image[0]
    expected = torch.stack([saliency(model, padded, 1) for model in models]).mean(0)[place]
    found = scan_saliency(adapter, models, sample, 1, CPU)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.parametrize("patch", [(1, 24, 24), (16, 24, 24)])
@pytest.mark.parametrize("truth", [0, 1])
def test_a_picture_carries_both_maps_and_is_drawn(patch, truth):
    adapter = adapter_for(spec(patch))
    model = classifier(build(BACKBONES["resenc"]))
    sample = Sample(torch.randn(1, *patch), 0.0, patch, (1.0, 1.0, 1.0), "SAR" if patch[0] > 1 else "", truth, truth)
    picture = picture_with_saliency(adapter, [model], sample, np.array([0.2, 0.8]), CPU)
    assert picture["image"].shape == picture["saliency"].shape == picture["saliency_truth"].shape == (24, 24)
    assert np.array_equal(picture["saliency"], picture["saliency_truth"]) == (truth == 1)
    plain = adapter.picture(sample, np.array([0.2, 0.8]))
    drawn, without = overlay(picture, overlays.saliency, 2), overlay(plain, overlays.saliency, 2)
    assert drawn.startswith("data:image/png;base64,")
    assert drawn != without
