"""Batch norm over all ranks against torch's on the whole batch; views through the encoder together or apart."""

import pytest
import torch
from torch import nn

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.pretrain.objectives.projector import GlobalBatchNorm1d, mlp, pooled, same_shape

STRIDES = ((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1))


@pytest.mark.parametrize("affine", [True, False])
def test_on_one_process_it_is_torchs_batch_norm(affine):
    ours, torchs = (kind(4, affine=affine).double() for kind in (GlobalBatchNorm1d, nn.BatchNorm1d))
    if affine:
        for parameter in ours.parameters():
            nn.init.normal_(parameter)
        torchs.load_state_dict(ours.state_dict())
    for _ in range(3):
        x = (torch.randn(6, 4, dtype=torch.float64) * 3 + 5).requires_grad_()
        probe = torch.randn_like(x)
        results = [norm(x) for norm in (ours, torchs)]
        inputs = [[x, *norm.parameters()] for norm in (ours, torchs)]
        gradients = [torch.autograd.grad((r * probe).sum(), i) for r, i in zip(results, inputs, strict=True)]
        torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)
    for (name, one), (_, other) in zip(ours.named_buffers(), torchs.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12, msg=name)
    torch.testing.assert_close(ours.eval()(x), torchs.eval()(x), rtol=1e-12, atol=1e-12)


def test_half_precision_keeps_its_type_and_is_counted_in_float32():
    norm = GlobalBatchNorm1d(4)
    x = torch.randn(64, 4).bfloat16() + 30
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), nn.BatchNorm1d(4).double()(x.double()), rtol=1e-2, atol=1e-2)
    with pytest.raises(ValueError, match="two rows or more"):
        norm(x[:1])


def test_a_batch_that_is_not_finite_leaves_the_running_statistics():
    norm, x = GlobalBatchNorm1d(3), torch.randn(6, 3)
    norm(x)
    before = norm.running_mean.clone()
    x[0, 0] = float("nan")
    assert norm(x)[:, 0].isnan().all()
    assert norm.running_mean[0] == before[0]
    assert norm.running_mean.isfinite().all()
    assert norm.running_var.isfinite().all()
    assert norm.running_mean[1] != before[1]


def test_over_ranks_of_unequal_batches_it_is_torchs_on_the_whole(ranks):
    """The engine averages gradients: over ranks whose losses count each their own rows, times the ranks."""
    ranks(
        """
import torch
import torch.distributed as dist
from torch import nn
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.objectives.projector import mlp
world = join("cpu", 1)
torch.manual_seed(0)
x = torch.randn(7, 5, dtype=torch.float64) * 2 + 3
probe = torch.randn(7, 4, dtype=torch.float64)
ours = mlp(5, 6, 4, 3, last_norm=True).double()
plain = nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6, bias=False),
                      nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.BatchNorm1d(4, affine=False))
plain.double().load_state_dict(ours.state_dict())
rows = slice(0, 2) if world.rank == 0 else slice(2, 7)
whole, part = plain(x), ours(x[rows])
torch.testing.assert_close(part, whole[rows], rtol=1e-10, atol=1e-10)
expected = torch.autograd.grad((whole.square() * probe).sum(), list(plain.parameters()))
gradients = torch.autograd.grad((part.square() * probe[rows]).sum() * world.size, list(ours.parameters()))
for one, other in zip(gradients, expected, strict=True):
    dist.all_reduce(one)
    torch.testing.assert_close(one / world.size, other, rtol=1e-10, atol=1e-10)
for (name, one), (_, other) in zip(ours.named_buffers(), plain.named_buffers(), strict=True):
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
""",
        2,
    )


def test_the_heads_layers():
    kinds = [type(module).__name__ for module in mlp(3, 5, 4, 3, last_norm=False)]
    hidden = ["Linear", "GlobalBatchNorm1d", "ReLU"]
    assert kinds == [*hidden, *hidden, "Linear"]
    last = mlp(3, 5, 4, 2, last_norm=True)[-1]
    assert isinstance(last, GlobalBatchNorm1d)
    assert not last.affine
    assert mlp(3, 5, 4, 2, last_norm=True)(torch.randn(6, 3)).shape == (6, 4)


@pytest.mark.parametrize(
    "backbone", [ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4)), STUNetConfig(size="S", strides=STRIDES)]
)
def test_together_or_apart_the_encoder_gives_each_view_the_same(backbone):
    encoder = build(backbone).double()
    views = [(torch.randn(2, 1, 4, 8, 8, dtype=torch.float64), torch.rand(2, 1, 4, 8, 8) > 0.4) for _ in range(3)]
    flat = (torch.randn(2, 1, 1, 8, 12, dtype=torch.float64), torch.ones(2, 1, 1, 8, 12, dtype=torch.bool))
    for chosen in (views, [views[0], flat]):
        for one, (voxels, valid) in zip(pooled(encoder, chosen), chosen, strict=True):
            torch.testing.assert_close(one, encoder.pooled(voxels, valid), rtol=1e-10, atol=1e-10)
    assert not torch.allclose(encoder.pooled(*views[0]), encoder.pooled(views[0][0]))


def test_pictures_of_several_sizes_are_padded_around_and_flat_ones_repeated():
    volume, image = torch.rand(2, 1, 4, 6, 5) + 1, torch.rand(2, 1, 1, 4, 7) + 1
    a, b = same_shape(volume, image)
    assert a.shape == b.shape == (2, 1, 4, 6, 7)
    assert torch.equal(a[..., 1:6], volume)
    assert torch.equal(b[:, :, :, 1:5], image.expand(-1, -1, 4, -1, -1))
    assert (a[..., 0] == volume.min()).all()
    assert (b[:, :, :, 0] == image.min()).all()
