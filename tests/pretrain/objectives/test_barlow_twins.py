"""Barlow Twins' objective against its steps written plainly, at two ranks, and that it learns."""

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
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig, mixing

VIT = ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4))
STUNET = STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
VOLUME, IMAGE = (4, 8, 8), (1, 8, 12)


def make(backbone=VIT, **options):
    torch.manual_seed(0)
    config = BarlowTwinsConfig(projector_hidden=32, projector_dim=16, **options)
    return config.build(build(backbone))


def make_batch(shape, seed, size=4, padded=False, step=3):
    """Smooth random scans; padded: the last rows of W of the first one lie outside the scan."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.randn(size, 1, *(max(n // 2, 1) for n in shape), generator=g)
    voxels = F.interpolate(coarse, size=shape, mode="trilinear", align_corners=False)
    valid = torch.ones(size, 1, *shape, dtype=torch.bool)
    if padded:
        valid[0, ..., -4:] = False
    names = [str(i) for i in range(size)]
    return Batch(voxels, valid, torch.arange(size) + seed, names, ["mr"] * size, ["a"] * size, step)


def double(batch):
    return dataclasses.replace(batch, voxels=batch.voxels.double())


def unit(z):
    return (z - z.mean(0)) / (z.var(0, unbiased=False) + 1e-5).sqrt()


@pytest.mark.parametrize("mixed", [None, 2.0])
def test_it_equals_its_steps_written_plainly(mixed):
    objective = make(mixed=mixed, redundancy=0.02, scale=0.5).double()
    first, second = (double(make_batch(VOLUME, seed, padded=True)) for seed in (0, 1))
    ours, metrics = objective(first, second)
    share, partner = mixing(first)
    with torch.no_grad():

        def embed(voxels, valid):
            return objective.projector(objective.encoder.pooled(voxels, valid))

        raw = [embed(v.voxels, v.valid) for v in (first, second)]
        z1, z2 = map(unit, raw)
        correlation = z1.T @ z2 / 4
        eye = torch.eye(16, dtype=torch.bool)
        on = (correlation[eye] - 1).square().sum()
        off = 0.02 * correlation[~eye].square().sum()
        total = on + off
        if mixed:
            voxels = torch.stack([share * first.voxels[i] + (1 - share) * second.voxels[partner[i]] for i in range(4)])
            valid = torch.stack([first.valid[i] & second.valid[partner[i]] for i in range(4)])
            zm = unit(embed(voxels, valid))
            term = 0
            for z in (z1, z2):  # the paper's targets are Z1's and Z2's shares, both times the view compared with
                target = share * z1.T @ z + (1 - share) * z2[partner].T @ z
                term = term + 0.5 * 0.02 * ((zm.T @ z - target) / 4).square().sum()
            total = total + mixed * term
            torch.testing.assert_close(metrics["mixed"], mixed * term, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(ours, 0.5 * total, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(metrics["on_diagonal"], on, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(metrics["off_diagonal"], off, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(metrics["alignment"], F.cosine_similarity(z1, z2), rtol=1e-9, atol=1e-12)
    assert not any(value.requires_grad for value in metrics.values())
    assert ("mixed" in metrics) == (mixed is not None)


def test_the_mixture_depends_on_step_and_seeds_alone():
    batch, state = make_batch(VOLUME, 0, size=32), torch.get_rng_state()
    share, partner = mixing(batch)
    again = mixing(make_batch(IMAGE, 0, size=32))
    assert share == again[0]
    assert torch.equal(partner, again[1])
    assert partner.sort().values.tolist() == list(range(32))
    other_seeds, other_step = mixing(make_batch(VOLUME, 7, size=32)), mixing(make_batch(VOLUME, 0, size=32, step=4))
    assert other_seeds[0] == share  # the same on every rank, whose samples differ
    assert other_seeds[1].tolist() != partner.tolist()
    assert other_step[0] != share
    assert torch.equal(state, torch.get_rng_state())
    shares = torch.tensor([mixing(make_batch(IMAGE, 0, size=2, step=step))[0] for step in range(400)])
    assert (shares.histc(4, 0, 1) / 400 - 0.25).abs().max() < 0.08  # Beta(1, 1)


def test_the_weight_of_the_mixed_term_rises_and_is_known_after_a_resume():
    objective = make(mixed=2.0, mixed_warmup=0.5)
    views = (make_batch(VOLUME, 0), make_batch(VOLUME, 1))

    def term(of):
        with torch.no_grad():
            return of(*views)[1]["mixed"]

    assert term(objective) == 0
    objective.after_step(0.25)
    half = term(objective)
    resumed = make(mixed=2.0, mixed_warmup=0.5)
    resumed.load_state_dict(objective.state_dict())
    torch.testing.assert_close(term(resumed), half)
    for progress in (0.5, 1.0):
        objective.after_step(progress)
        torch.testing.assert_close(term(objective), 2 * half)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValidationError, match="mixed_warmup needs"):
        BarlowTwinsConfig(mixed_warmup=0.1)
    with pytest.raises(UserError, match="mixes two views of one size"):
        make(mixed=1.0)(make_batch(VOLUME, 0), make_batch(IMAGE, 1))
    with pytest.raises(UserError, match=r"raise data\.batch_2d"):
        make()(make_batch(VOLUME, 0, size=1), make_batch(VOLUME, 1, size=1))
    with pytest.raises(UserError, match="multiple of"):
        make().check_shape((4, 8, 9))


def test_a_volume_and_an_image_are_a_pair_too():
    loss, _ = make()(make_batch(VOLUME, 0), make_batch(IMAGE, 1))
    assert loss.isfinite()


def test_defaults_are_the_papers():
    config = BarlowTwinsConfig()
    assert (config.redundancy, config.projector_hidden, config.projector_dim, config.projector_layers) == (
        0.0051, 8192, 8192, 3,
    )  # fmt: skip
    assert make().projector[-1].bias is None


def test_bfloat16_autocast_takes_float32_batches_and_gives_a_float32_loss():
    views = (make_batch(VOLUME, 0, size=8), make_batch(VOLUME, 1, size=8))
    objective = make(mixed=1.0)
    with torch.autocast("cpu", torch.bfloat16):
        ours, _ = objective(*views)
    ours.backward()
    assert ours.dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)
    exact, _ = make(mixed=1.0).double()(*map(double, views))
    assert ours.item() == pytest.approx(exact.item(), rel=0.05)


def test_pictures_show_both_views_and_their_mixture():
    views = (make_batch(VOLUME, 0), make_batch(VOLUME, 1))
    assert list(make().show(*views)) == ["first view", "second view"]
    shown = make(mixed=1.0).show(*views)
    assert list(shown) == ["first view", "second view", "mixture"]
    share, partner = mixing(views[0])
    torch.testing.assert_close(shown["mixture"], share * views[0].voxels + (1 - share) * views[1].voxels[partner])


def effective_rank(features):
    """RankMe (Garrido et al. 2023) of centred features: the exponential of the entropy of singular values' shares."""
    share = torch.linalg.svdvals(features - features.mean(0))
    share = share / share.sum()
    return torch.exp(-(share * (share + 1e-12).log()).sum()).item()


@pytest.mark.parametrize(("backbone", "mixed"), [(VIT, None), (VIT, 1.0), (STUNET, None)])
def test_it_learns_without_collapse(backbone, mixed):
    """Views are noisy copies of sixteen scans, volumes and images in turn."""
    objective = make(backbone, mixed=mixed)
    optimiser = build_optimiser(objective, OptimiserConfig(lr=1e-3, warmup_steps=0).filled("convolutional"))
    scans = [make_batch(shape, 5, size=16) for shape in (VOLUME, IMAGE)]
    g = torch.Generator().manual_seed(0)

    def noisy(batch, step):
        voxels = batch.voxels + 0.3 * torch.randn(batch.voxels.shape, generator=g)
        return dataclasses.replace(batch, voxels=voxels, step=step)

    history = []
    for step in range(24):
        optimiser.zero_grad()
        loss, metrics = objective(*(noisy(scans[step % 2], step) for _ in range(2)))
        loss.backward()
        optimiser.step()
        history.append((loss.item(), metrics["alignment"].mean().item()))
    start, end = (torch.tensor(part).mean(0) for part in (history[:4], history[-4:]))
    assert end[0] < 0.7 * start[0]
    assert end[1] > start[1] + 0.1
    with torch.no_grad():
        for batch in scans:
            features = objective.encoder.pooled(batch.voxels, batch.valid)
            assert effective_rank(features) > 2
            assert effective_rank(objective.projector(features)) > 2


CROSS_RANK = """
import os
from pathlib import Path
import torch
import torch.distributed as dist
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.objectives import barlow_twins
world = join("cpu", 1)
n = 4 // world.size
rows = slice(world.rank * n, (world.rank + 1) * n)
swap = torch.tensor([1, 0, 3, 2])[:n]  # partners lie on their own rank: here they do at any world size
barlow_twins.mixing = lambda batch: (0.3, swap)
results = {}
for dim in (2, 40):
    g = torch.Generator().manual_seed(0)
    def batch():
        voxels = torch.randn(4, 1, 4, 8, 8, generator=g, dtype=torch.float64)
        names = ["mr"] * n
        return Batch(voxels[rows], torch.ones_like(voxels[rows]) > 0, torch.arange(n), names, names, names, 0)
    torch.manual_seed(0)
    config = barlow_twins.BarlowTwinsConfig(projector_hidden=16, projector_dim=dim, mixed=1.0)
    objective = config.build(build(ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4)))).double()
    value, metrics = objective(batch(), batch())
    value.backward()
    gradients = {k: p.grad for k, p in objective.named_parameters() if p.grad is not None}
    terms = {k: v for k, v in metrics.items() if v.dim() == 0}
    for tensor in (value := value.detach().clone(), *gradients.values(), *terms.values()):
        dist.all_reduce(tensor)
        tensor /= world.size
    results[dim] = {"loss": value, **terms, **gradients, **dict(objective.named_buffers())}
torch.save(results, Path(os.environ["TMP_PATH"]) / f"{world.size}-{world.rank}.pt")
"""


def test_two_ranks_compute_what_one_computes(ranks, tmp_path):
    """Loss and terms, gradients of all weights after the engine's averaging, running statistics."""
    for size in (1, 2):
        ranks(CROSS_RANK, size)
    one, *two = (torch.load(tmp_path / f"{name}.pt") for name in ("1-0", "2-0", "2-1"))
    for dim, expected in one.items():
        assert max(value.abs().max() for name, value in expected.items() if name.startswith("encoder.")) > 1e-3
        for results in two:
            assert results[dim].keys() == expected.keys()
            for name, value in expected.items():
                torch.testing.assert_close(results[dim][name], value, rtol=1e-9, atol=1e-9, msg=f"{dim} {name}")
