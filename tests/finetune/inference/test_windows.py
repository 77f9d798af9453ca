"""The streamed windows against plain whole-volume computations, one of them MONAI's."""

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data.utils import compute_importance_map
from monai.inferers import sliding_window_inference

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.finetune.heads.segmentation import SegmentationModel
from scanfoundry.finetune.inference.windows import Tiling, stream_order, stream_scores, window_starts, window_weights

CPU = torch.device("cpu")


class Uneven(torch.nn.Module):
    """Cheap, nonlinear, and it looks at the whole patch: no two windows give a voxel the same scores."""

    def __init__(self, seed, classes=3):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = torch.nn.Conv3d(1, classes, 3, padding=1)
        self.register_buffer("ramp", torch.linspace(0.5, 1.5, 7))

    def forward(self, x):
        ramp = F.interpolate(self.ramp[None, None], size=x.shape[-1], mode="linear")[0, 0]
        return torch.tanh(self.conv(x)) * ramp + x.mean((1, 2, 3, 4), keepdim=True)


def gathered(members, image, fill, tiling):
    """The stream as volumes (M, K, D, H, W)."""
    order = stream_order(image.shape[1:], tiling.patch)
    planes = torch.cat(list(stream_scores(members, image, fill, tiling, CPU)), 2)
    return planes.permute(0, 1, *(2 + order.index(a) for a in range(3)))


def naive(model, image, fill, patch, overlap, mirrors):
    """The whole volume padded, the sums of its size, one window after the other, as the method is written down."""
    padding = [max(0, p - n) for n, p in zip(image.shape[1:], patch, strict=True)]
    before = [p // 2 for p in padding]
    wide = [(b, p - b) for b, p in zip(before, padding, strict=True)]
    padded = torch.from_numpy(np.pad(image.numpy(), [(0, 0), *wide], constant_values=fill))
    axes = [torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in patch]
    bells = [torch.exp(-(x**2) / (2 * (n / 8) ** 2)) for x, n in zip(axes, patch, strict=True)]
    bell = torch.einsum("d,h,w->dhw", *bells)
    bell = bell.clamp_min(max(float(bell.min()), 1e-3))
    sums = weights = 0
    for at in product(*(window_starts(n, p, overlap) for n, p in zip(padded.shape[1:], patch, strict=True))):
        here = (slice(None), *(slice(a, a + p) for a, p in zip(at, patch, strict=True)))
        window = padded[here][None]
        scores = [model(window.flip([a + 2 for a in m])).flip([a + 2 for a in m]) for m in mirrors]
        if isinstance(sums, int):
            sums, weights = torch.zeros(scores[0].shape[1], *padded.shape[1:]).double(), torch.zeros(padded.shape[1:])
            weights = weights.double()
        sums[here] += torch.stack(scores).mean(0)[0].double() * bell
        weights[here[1:]] += bell
    inner = tuple(slice(b, b + n) for b, n in zip(before, image.shape[1:], strict=True))
    return (sums / weights)[:, *inner]


@settings(max_examples=40, deadline=None)
@given(
    shape=st.tuples(*[st.integers(1, 13)] * 3),  # the windows grow with the third power
    patch=st.tuples(*[st.integers(2, 7)] * 3),
    overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75]),
    mirrors=st.sampled_from([[()], [(), (2,)], [(), (0,), (1,), (0, 1)]]),
    batch=st.integers(1, 3),
    members=st.integers(1, 2),
)
@torch.inference_mode()
def test_equals_the_whole_volume(shape, patch, overlap, mirrors, batch, members):
    image = torch.randn(1, *shape, generator=torch.Generator().manual_seed(sum(shape)))
    networks = [Uneven(seed) for seed in range(members)]
    found = gathered(networks, image, -0.5, Tiling(patch, overlap, mirrors, batch))
    for network, scores in zip(networks, found, strict=True):
        expected = naive(network, image, -0.5, patch, overlap, mirrors)
        assert torch.allclose(scores.double(), expected, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "patch"), [((8, 16, 24), (8, 8, 8)), ((1, 20, 12), (1, 8, 8)), ((9, 10, 6), (6, 4, 4))]
)
@torch.inference_mode()
def test_equals_monai_where_its_windows_are_as_evenly_spread(shape, patch):
    image = torch.randn(1, *shape)
    expected = sliding_window_inference(image[None], patch, 1, Uneven(0), 0.5, mode="gaussian")[0]
    assert torch.allclose(gathered([Uneven(0)], image, 0.0, Tiling(patch, 0.5))[0], expected, atol=1e-5)


@pytest.mark.parametrize("patch", [(1, 48, 64), (5, 8, 7), (16, 32, 32)])
def test_the_weights_are_monais(patch):
    assert torch.equal(window_weights(patch), compute_importance_map(patch, mode="gaussian", sigma_scale=0.125))


@given(size=st.integers(1, 400), patch=st.integers(1, 64), overlap=st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]))
def test_windows_cover_overlap_and_are_the_same_from_either_end(size, patch, overlap):
    starts = window_starts(size, patch, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, size - patch)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= max(1, int(patch * (1 - overlap)))).all()
    turned = [starts[-1] - at for at in reversed(starts)]
    apart = [abs(a - b) for a, b in zip(starts, turned, strict=True)]
    assert sum(apart) <= 1  # the middle one of an odd gap


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    encoder = build(STUNetConfig(size="S", strides=((2, 2, 2),) * 2 + ((1, 1, 1),) * 3))
    return SegmentationModel(encoder, 3, is_2d=False).eval()


@torch.inference_mode()
def test_a_network_sees_the_scan_as_it_is_where_it_fits(model):
    image = torch.randn(1, 16, 16, 20)
    assert torch.allclose(gathered([model], image, 0.0, Tiling((16, 16, 20), 0.5))[0], model(image[None])[0], atol=1e-4)


@torch.inference_mode()
def test_a_smaller_scan_is_padded_and_cut_back(model):
    image = torch.randn(1, 13, 16, 18)
    padded = torch.full((1, 1, 16, 16, 20), -2.0)
    padded[0, :, 1:14, :, 1:19] = image
    whole = model(padded)[0, :, 1:14, :, 1:19]
    assert torch.allclose(gathered([model], image, -2.0, Tiling((16, 16, 20), 0.5))[0], whole, atol=1e-4)


def test_mirroring_makes_a_prediction_turn_with_the_image(model):
    image = torch.randn(1, 16, 16, 20)
    tiling = Tiling((16, 16, 20), 0.5, [(), (1,), (2,), (1, 2)])
    straight, flipped = gathered([model], image, 0.0, tiling), gathered([model], image.flip(2), 0.0, tiling)
    assert torch.allclose(straight, flipped.flip(3), atol=1e-4)
    assert not torch.allclose(straight, gathered([model], image, 0.0, Tiling((16, 16, 20), 0.5)), atol=1e-3)


@torch.inference_mode()
def test_on_a_cpu_half_precision_is_the_callers_wish(model):
    image, tiling = torch.randn(1, 16, 16, 20), Tiling((16, 16, 20), 0.5)
    full = gathered([model], image, 0.0, tiling)
    with torch.autocast("cpu", torch.bfloat16):
        half = gathered([model], image, 0.0, tiling)
    assert half.dtype == torch.float32
    assert torch.equal(full[0], gathered([model], image, 0.0, tiling)[0])
    assert not torch.allclose(half, full, atol=1e-5)
    assert torch.allclose(half, full, atol=0.1 * float(full.abs().max()))
