"""The contrastive objective against its steps written plainly, at two ranks, and that it learns."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, build_optimiser
from scanfoundry.pretrain.losses.contrastive import dcl, dclw, moco_v3, nt_xent
from scanfoundry.pretrain.losses.variance import variance_hinge
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig, same_scans

VIT = ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4))
STUNET = STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
LOSSES = ["nt_xent", "dcl", "dclw", "moco_v3"]
VOLUME, IMAGE = (4, 8, 8), (1, 8, 12)


def make(loss, backbone=VIT, **options):
    torch.manual_seed(0)
    config = ContrastiveConfig(loss=loss, projector_hidden=32, projector_dim=16, **options)
    return config.build(build(backbone))


def make_batch(shape, seed, size=4, keys="abcdefgh", padded=False):
    """Smooth random scans; padded: the last rows of W of the first one lie outside the scan."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(size, 1, *(max(n // 2, 1) for n in shape), generator=g)
    voxels = F.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)
    valid = torch.ones(size, 1, *shape, dtype=torch.bool)
    if padded:
        valid[0, ..., -4:] = False
    return Batch(voxels, valid, torch.arange(size), list(keys[:size]), ["mr"] * size, ["a"] * size, 0)


def double(batch):
    return dataclasses.replace(batch, voxels=batch.voxels.double())


@pytest.mark.parametrize("shapes", [(VOLUME, VOLUME), (VOLUME, IMAGE)])
@pytest.mark.parametrize("loss", LOSSES)
def test_it_equals_its_steps_written_plainly(loss, shapes):
    objective = make(loss).double()
    first, second = (double(make_batch(shape, i, padded=True)) for i, shape in enumerate(shapes))
    ours, metrics = objective(first, second)
    with torch.no_grad():
        z1, z2 = (objective.projector(objective.encoder.pooled(v.voxels, v.valid)) for v in (first, second))
        if loss == "moco_v3":
            net = objective.follower
            keys = [net.projector(net.encoder.pooled(v.voxels, v.valid)) for v in (first, second)]
            q1, q2 = objective.predictor(z1), objective.predictor(z2)
            losses = moco_v3((q1, q2), (keys[0], keys[1]), 0.2)
            cosine = (F.cosine_similarity(q1, keys[1]) + F.cosine_similarity(q2, keys[0])) / 2
        else:
            losses = {"nt_xent": nt_xent, "dcl": dcl, "dclw": dclw}[loss](z1, z2, 0.1)
            cosine = F.cosine_similarity(z1, z2)
    torch.testing.assert_close(ours, losses.mean(), rtol=1e-9, atol=1e-9)
    assert metrics.keys() == {"alignment", loss}
    torch.testing.assert_close(metrics[loss], losses, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(metrics["alignment"], cosine, rtol=1e-9, atol=1e-9)
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("loss", ["dcl", "moco_v3"])
def test_the_variance_term_is_of_the_encoders_features_of_both_views(loss):
    first, second = (double(make_batch(VOLUME, i, padded=True)) for i in range(2))
    plain, _ = make(loss).double()(first, second)
    objective = make(loss, variance_weight=3.0).double()
    ours, metrics = objective(first, second)
    features = [objective.encoder.pooled(view.voxels, view.valid) for view in (first, second)]
    term = sum(variance_hinge(view) for view in features) / 2
    assert term > 0
    torch.testing.assert_close(ours, plain + 3 * term, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(metrics["variance"], term.detach(), rtol=1e-9, atol=1e-9)


def test_defaults_are_those_of_the_papers():
    simclr, moco = ContrastiveConfig(), ContrastiveConfig(loss="moco_v3")
    assert (simclr.temperature, simclr.projector_hidden, simclr.projector_dim, simclr.projector_layers) == (
        0.1, 2048, 128, 2,
    )  # fmt: skip
    assert (moco.temperature, moco.projector_hidden, moco.projector_dim, moco.projector_layers, moco.momentum) == (
        0.2, 4096, 256, 3, 0.99,
    )  # fmt: skip
    assert ContrastiveConfig(loss="dclw").sigma == 0.5
    assert ContrastiveConfig(loss="moco_v3", temperature=0.5, momentum=0.9).model_dump().items() >= {
        "temperature": 0.5, "momentum": 0.9, "projector_dim": 256,
    }.items()  # fmt: skip
    for loss in LOSSES:
        config = ContrastiveConfig(loss=loss)
        assert ContrastiveConfig(**config.model_dump()) == config


def test_options_that_a_loss_would_ignore_are_refused():
    for loss, option in (("nt_xent", {"sigma": 0.5}), ("moco_v3", {"sigma": 0.5}), ("dclw", {"momentum": 0.9})):
        with pytest.raises(ValidationError, match="alone; remove it"):
            ContrastiveConfig(loss=loss, **option)
    with pytest.raises(UserError, match="for transformers"):
        make("moco_v3", STUNET, freeze_patch_embedding=True)


def test_a_frozen_patch_embedding_gets_no_gradient():
    objective = make("moco_v3", freeze_patch_embedding=True)
    objective(make_batch(VOLUME, 0), make_batch(VOLUME, 1))[0].backward()
    named = dict(objective.named_parameters())
    frozen = {name for name, p in named.items() if name.startswith("encoder.patch_embed") and not p.requires_grad}
    assert len(frozen) == 4
    assert all(named[name].grad is None for name in frozen)
    assert named["encoder.blocks.0.attn.qkv.weight"].grad.any()


def test_the_momentum_encoder_follows_without_gradient_or_optimiser_and_apart_from_the_release():
    objective = make("moco_v3")
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    for name, value in objective.encoder.state_dict().items():
        assert torch.equal(before[f"follower.encoder.{name}"], value)
    released = {name for name in before if name.startswith("encoder.")}
    assert released == {f"encoder.{name}" for name in build(VIT).state_dict()}
    optimiser = build_optimiser(objective, OptimiserConfig(lr=1e-2, warmup_steps=0).filled("convolutional"))
    held = {id(p) for group in optimiser.param_groups for p in group["params"]}
    assert not held & {id(p) for p in objective.follower.parameters()}
    loss, _ = objective(make_batch(VOLUME, 0), make_batch(VOLUME, 1))
    loss.backward()
    optimiser.step()
    assert all(p.grad is None for p in objective.follower.parameters())
    objective.after_step(0.5)
    after = objective.state_dict()
    name = "encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(after[name], before[name])
    expected = 0.995 * before[f"follower.{name}"] + 0.005 * after[name]
    torch.testing.assert_close(after[f"follower.{name}"], expected)
    still = {name: value.clone() for name, value in after.items()}
    objective.after_step(1.0)
    assert all(torch.equal(still[name], value) for name, value in objective.state_dict().items())


@pytest.mark.parametrize("loss", LOSSES)
def test_scans_that_occur_twice_are_not_negatives_of_each_other(loss):
    """Rows 0 and 1 of the batch are of one scan (or of two, each in the other's pair): 2 and 3 alone repel them."""
    objective = make(loss).double()
    first, second = (double(make_batch(VOLUME, seed)) for seed in (0, 1))
    with torch.no_grad():
        alone = objective(first, second)[1][loss]
        for keys1, keys2 in (("aacd", "aacd"), ("abcd", "bacd"), ("abcd", "efga")):
            twice = objective(*(dataclasses.replace(b, keys=list(k)) for b, k in ((first, keys1), (second, keys2))))
            shared = twice[1][loss] != alone
            assert shared.tolist() == ([True, False, False, True] if keys2 == "efga" else [True, True, False, False])
        other = dataclasses.replace(first, keys=list("aacd"), sources=["a", "b", "a", "a"])
        assert torch.equal(objective(other, dataclasses.replace(second, keys=list("efgh")))[1][loss], alone)


def test_ids_of_scans_are_the_same_in_every_process():
    ids = same_scans(make_batch(VOLUME, 0), make_batch(IMAGE, 1, keys="xbcd"))
    assert ids.shape == (4, 2)
    assert ids.dtype == torch.int64
    assert ids[1:, 0].tolist() == ids[1:, 1].tolist()
    assert ids[0, 0] != ids[0, 1]
    assert ids[:2, 0].tolist() == [-442841073566878061, -6877055406182307059]


@pytest.mark.parametrize("loss", LOSSES)
def test_bfloat16_autocast_takes_float32_batches_and_gives_a_float32_loss(loss):
    objective = make(loss, temperature=0.05)
    views = (make_batch(VOLUME, 0), make_batch(VOLUME, 1))
    with torch.autocast("cpu", torch.bfloat16):
        ours, metrics = objective(*views)
    ours.backward()
    assert ours.dtype == metrics["alignment"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    exact, _ = make(loss, temperature=0.05).double()(*map(double, views))
    assert ours.item() == pytest.approx(exact.item(), abs=0.3)


def test_one_pair_over_all_ranks_and_crops_that_do_not_fit_are_refused():
    objective = make("nt_xent")
    with pytest.raises(UserError, match=r"raise data\.batch_2d"):
        objective(make_batch(VOLUME, 0, size=1), make_batch(VOLUME, 1, size=1))
    with pytest.raises(UserError, match="multiple of"):
        objective.check_shape((4, 8, 9))
    objective.check_shape(VOLUME)
    assert objective.views == 2


def test_pictures_show_both_views():
    views = (make_batch(VOLUME, 0), make_batch(IMAGE, 1))
    shown = make("nt_xent").show(*views)
    assert list(shown) == ["first view", "second view"]
    assert all(picture.shape == (4, 1, 4, 8, 12) for picture in shown.values())


def effective_rank(features):
    """RankMe (Garrido et al. 2023) of centred features: the exponential of the entropy of singular values' shares."""
    share = torch.linalg.svdvals(features - features.mean(0))
    share = share / share.sum()
    return torch.exp(-(share * (share + 1e-12).log()).sum()).item()


@pytest.mark.parametrize(
    ("loss", "backbone"), [*((loss, VIT) for loss in LOSSES), ("nt_xent", STUNET), ("moco_v3", STUNET)]
)
def test_it_learns_without_collapse(loss, backbone):
    """Views are noisy copies of eight scans, volumes and images in turn; the pairs find each other."""
    objective = make(loss, backbone)
    optimiser = build_optimiser(objective, OptimiserConfig(lr=1e-3, warmup_steps=0).filled("convolutional"))
    scans = [make_batch(shape, 5, size=8) for shape in (VOLUME, IMAGE)]
    g = torch.Generator().manual_seed(0)

    def noisy(batch):
        return dataclasses.replace(batch, voxels=batch.voxels + 0.3 * torch.randn(batch.voxels.shape, generator=g))

    history = []
    for step in range(24):
        optimiser.zero_grad()
        value, metrics = objective(*(noisy(scans[step % 2]) for _ in range(2)))
        value.backward()
        optimiser.step()
        objective.after_step((step + 1) / 24)
        history.append((metrics[loss].mean().item(), metrics["alignment"].mean().item()))
    start, end = (torch.tensor(part).mean(0) for part in (history[:4], history[-4:]))
    assert end[0] < start[0] - 0.1
    assert end[1] > start[1] + 0.1
    with torch.no_grad():
        for batch in scans:
            features = objective.encoder.pooled(batch.voxels, batch.valid)
            assert effective_rank(features) > 2
            assert effective_rank(objective.projector(features)) > 2


CROSS_RANK = """
import dataclasses, os
from pathlib import Path
import torch
import torch.distributed as dist
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
world = join("cpu", 1)
g = torch.Generator().manual_seed(0)
rows = slice(world.rank * 4 // world.size, (world.rank + 1) * 4 // world.size)
def batch(shape, keys):
    voxels = torch.randn(4, 1, *shape, generator=g, dtype=torch.float64)
    valid = torch.rand(4, 1, *shape, generator=g) > 0.2
    names = ["mr"] * 4
    return Batch(voxels[rows], valid[rows], torch.arange(4)[rows], list(keys)[rows], names[rows], names[rows], 0)
results = {}
for loss in ("dclw", "moco_v3"):
    torch.manual_seed(0)
    config = ContrastiveConfig(loss=loss, projector_hidden=16, projector_dim=8)
    objective = config.build(build(ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4)))).double()
    value, metrics = objective(batch((4, 8, 8), "abca"), batch((1, 8, 12), "abca"))
    value.backward()
    gradients = {n: p.grad for n, p in objective.named_parameters() if p.grad is not None}
    for tensor in (loss_value := value.detach().clone(), *gradients.values()):
        dist.all_reduce(tensor)
        tensor /= world.size
    results[loss] = {"loss": loss_value, **gradients, **dict(objective.named_buffers())}
torch.save(results, Path(os.environ["TMP_PATH"]) / f"{world.size}-{world.rank}.pt")
"""


def test_two_ranks_compute_what_one_computes(ranks, tmp_path):
    """Loss, gradients of all weights after the engine's averaging, running statistics; one scan lies on both ranks."""
    for size in (1, 2):
        ranks(CROSS_RANK, size)
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for loss, expected in one.items():
        assert max(value.abs().max() for name, value in expected.items() if name.startswith("encoder.")) > 1e-3
        for results in two:
            assert results[loss].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(results[loss][name], value, rtol=1e-9, atol=1e-10, msg=f"{loss} {name}")
