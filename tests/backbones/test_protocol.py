"""The pooled vector over valid voxels, against loops, for every backbone."""

import pytest
import torch

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.protocol import masked_mean
from scanfoundry.backbones.registry import backbones, build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig

SMALL = ((2, 2, 2), (1, 2, 2), (1, 1, 2), (1, 1, 1), (1, 1, 1))


def looped(features, valid):
    """Weighted mean by loops over the cells of a grid that divides the scan."""
    steps = [n // k for n, k in zip(valid.shape[2:], features.shape[2:], strict=True)]
    rows = []
    for feature, mask in zip(features, valid[:, 0], strict=True):
        total, weight = torch.zeros(len(feature), dtype=torch.float64), 0.0
        for i, j, k in torch.cartesian_prod(*(torch.arange(n) for n in feature.shape[1:])).tolist():
            box = [slice(n * s, (n + 1) * s) for n, s in zip((i, j, k), steps, strict=True)]
            share = mask[box[0], box[1], box[2]].double().mean()
            total, weight = total + share * feature[:, i, j, k], weight + share
        rows.append(total / weight)
    return torch.stack(rows)


@pytest.mark.parametrize(("grid", "scan"), [((2, 3, 4), (4, 9, 16)), ((1, 3, 2), (1, 12, 4))])
def test_cells_count_by_their_share_of_valid_voxels(grid, scan):
    features = torch.randn(2, 5, *grid, dtype=torch.float64, requires_grad=True)
    valid = torch.rand(2, 1, *scan) < 0.4
    valid[0, :, :, : scan[1] // 2] = False
    ours, plain = masked_mean(features, valid), looped(features, valid)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    probe = torch.randn_like(plain)
    one, other = (torch.autograd.grad((y * probe).sum(), features) for y in (ours, plain))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_valid_and_none_valid_are_exactly_the_plain_mean(dtype):
    features = torch.randn(3, 5, 2, 3, 4, dtype=dtype)
    valid = torch.ones(3, 1, 8, 9, 20, dtype=torch.bool)
    plain = features.mean(dim=(2, 3, 4))
    assert torch.equal(masked_mean(features, None), plain)
    assert torch.equal(masked_mean(features, valid), plain)
    valid[1] = False  # only this sample falls back
    valid[2, :, :4] = False
    mixed = masked_mean(features, valid)
    assert torch.equal(mixed[:2], plain[:2])
    torch.testing.assert_close(mixed[2], features[2, :, 1:].mean(dim=(1, 2, 3)))


def test_bfloat16_features_keep_small_shares():
    features = torch.randn(1, 5, 2, 1, 1)
    valid = torch.zeros(1, 1, 64, 32, 32, dtype=torch.bool)
    valid[:, :, 0, 0, 0], valid[:, :, 32, :1] = True, True  # 1 and 32 of 32,768 voxels
    exact = (features[..., 0, 0] * torch.tensor([1.0, 32.0]) / 33).sum(dim=2)
    rough = masked_mean(features.bfloat16(), valid)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), exact, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    "config", [ViTConfig(size="Ti", registers=2), STUNetConfig(size="S", strides=SMALL)], ids=lambda c: c.name
)
@pytest.mark.parametrize("shape", [(1, 32, 48), (16, 16, 24)], ids=["2D", "3D"])
def test_encoders_pool_their_deepest_features_over_valid_voxels(config, shape):
    encoder = build(config).double()
    x, valid = torch.randn(2, 1, *shape, dtype=torch.float64), torch.ones(2, 1, *shape, dtype=torch.bool)
    valid[0, :, :, : shape[1] // 2] = False
    with torch.no_grad():
        deepest = encoder(x)[-1]
        torch.testing.assert_close(encoder.pooled(x, valid), looped(deepest, valid))
        torch.testing.assert_close(encoder.pooled(x), deepest.mean(dim=(2, 3, 4)))
        assert not torch.allclose(encoder.pooled(x, valid)[0], encoder.pooled(x)[0])


ONE_OF_EACH = {
    "mednext": MedNeXtConfig(size="S"),
    "primus": PrimusConfig(size="S", grid=(2, 2, 3)),
    "resenc": ResEncConfig(features=(8, 12, 16), blocks=(1, 2, 1), strides=((2, 2, 2),) * 2),
    "stunet": STUNetConfig(size="S", strides=SMALL),
    "vit": ViTConfig(size="Ti"),
}
BLOCKS = {"mednext": 14, "primus": 12, "resenc": 4, "stunet": 6, "vit": 12}


@pytest.mark.parametrize("name", backbones())
def test_a_backbone_answers_what_varies_with_it(name):
    """Its blocks, once each and its own; a decoder that shares its weights where it has levels; its family."""
    encoder = build(ONE_OF_EACH[name])
    blocks = list(encoder.block_modules())
    assert len(blocks) == len(set(blocks)) == BLOCKS[name]
    assert set(blocks) <= set(encoder.modules())
    network = encoder.decoder(3)
    assert (network is None) == (len(encoder.feature_channels) == 1) == (encoder.config.family == "transformer")
    if network is not None:
        assert {id(p) for p in network.encoder_parameters()} == {id(p) for p in encoder.parameters()}
        assert sum(p.numel() for p in network.parameters()) > sum(p.numel() for p in encoder.parameters())


@pytest.mark.parametrize("name", ["mednext", "resenc", "stunet"])
def test_a_network_knows_the_parts_of_its_weights(name):
    """Encoder, decoder and head are all of it, once each; the decoder alone computes the same maps without them."""
    encoder = build(ONE_OF_EACH[name])
    network = encoder.decoder(3)
    parts = {part: {} for part in ("encoder", "decoder", "head")}
    for key, value in network.state_dict().items():
        part, own = network.part_of(key)
        parts[part][own] = value
    assert sum(map(len, parts.values())) == len(network.state_dict())
    assert parts["encoder"].keys() == encoder.state_dict().keys()
    heads = {key for key, value in parts["head"].items() if 3 in value.shape[:2]}
    assert heads == parts["head"].keys()
    assert len(heads) == 2 * len(network.output_layers())
    alone = encoder.feature_decoder()
    assert alone.state_dict().keys() == parts["decoder"].keys()
    alone.load_state_dict(parts["decoder"])
    x = torch.randn(1, 1, 16, 32, 32)
    with torch.no_grad():
        ours, theirs = alone.decode(encoder(x)), network.decode(network.encode(x))
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert ours[0].shape[1] == encoder.feature_channels[0]
