"""The option `positions` of the contrastive objective: what is a positive of what, what is refused, what is taught."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.centres import Centres
from scanfoundry.datasets.crop import mix
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.losses.positional import soft_dcl, soft_nt_xent
from scanfoundry.pretrain.memory.trace import trace
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig, same_scans
from scanfoundry.pretrain.objectives.positions import PositionsConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig, TermConfig
from scanfoundry.pretrain.views import check_depth

RESENC = {"name": "resenc", "features": [8, 16, 32], "blocks": [1, 1, 1], "strides": [[2, 2, 2], [1, 2, 2]]}
NAN = np.nan


def config(loss="nt_xent", **positions):
    sizes = {"projector_hidden": 32, "projector_dim": 16, "momentum": 0.9 if loss == "moco_v3" else None}
    return ContrastiveConfig(loss=loss, positions=PositionsConfig(**{"axes": ["d"], **positions}), **sizes)


def make(loss="nt_xent", **positions):
    torch.manual_seed(0)
    return config(loss, **positions).build(build(ResEncConfig.model_validate(RESENC)))


def batch(shares, seed=0, shape=(4, 8, 8), **facts):
    """Random crops at `shares` (B, 3) of scans of their own."""
    count = len(shares)
    voxels = torch.randn(count, 1, *shape, generator=torch.Generator().manual_seed(seed))
    known = Centres(np.array(shares, np.float32), np.ones(count, np.bool_))
    plain = {"keys": [str(i) for i in range(count)], "modalities": ["mr"] * count, "sources": ["a"] * count}
    valid = torch.ones_like(voxels, dtype=torch.bool)
    return Batch(voxels, valid, torch.arange(count), step=0, **{"centres": known, **plain, **facts})


PLACES = [(0.2, 0.1, 0.5), (0.25, 0.9, 0.5), (0.7, 0.1, 0.5), (NAN, 0.12, NAN)]


def positives(first, second=None, **positions):
    """For each first view the other first views that are its positives."""
    second = first if second is None else second
    found = PositionsConfig(**{"axes": ["d"], **positions}).relations(first, second, same_scans(first, second))
    return [set(row.nonzero().flatten().tolist()) for row in found.weights[: len(first), : len(first)]]


def test_the_same_place_along_the_chosen_axes_makes_a_positive():
    given = batch(PLACES)
    assert positives(given) == [{1}, {0}, set(), set()]
    assert positives(given, axes=["h"]) == [{2, 3}, set(), {0, 3}, {0, 2}]
    assert positives(given, axes=["d", "h", "w"]) == [set()] * 4
    assert positives(given, axes=["d", "h"], bandwidth=0.31) == [{3}, set(), {3}, {0, 2}]


@pytest.mark.parametrize(
    "facts",
    [
        {"sources": ["a", "b", "a", "a"]},
        {"modalities": ["mr", "ct", "mr", "mr"]},
        {"centres": Centres(np.array(PLACES, np.float32), np.array([True, False, True, True]))},
    ],
)
def test_places_in_different_kinds_of_scans_are_not_compared(facts):
    assert positives(batch(PLACES)) != positives(batch(PLACES, **facts)) == [set()] * 4


def test_an_image_is_no_positive_of_a_volume():
    volumes, images = batch(PLACES), batch(PLACES, shape=(1, 8, 8))
    found = PositionsConfig(axes=["d"]).relations(volumes, images, same_scans(volumes, images))
    assert torch.equal(found.weights[:4, 4:], torch.eye(4))
    assert found.weights[:4, :4].any()
    assert found.weights[4:, 4:].any()


@pytest.mark.parametrize(("loss", "soft"), [("nt_xent", soft_nt_xent), ("dcl", soft_dcl)])
def test_it_equals_its_steps_written_plainly(loss, soft):
    objective = make(loss, kernel="gaussian", bandwidth=0.2)
    first, second = batch(PLACES), batch(PLACES[1:] + PLACES[:1], seed=1)
    ours, metrics = objective(first, second)
    z1, z2 = (objective.projector(objective.encoder.pooled(v.voxels, v.valid)) for v in (first, second))
    related = objective.config.positions.relations(first, second, same_scans(first, second))
    torch.testing.assert_close(ours, soft(z1, z2, 0.1, related).mean(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(metrics["soft_positives"], related.soft)
    assert metrics.keys() == {"alignment", loss, "soft_positives"}
    without = ContrastiveConfig(loss=loss, projector_hidden=32, projector_dim=16)
    torch.manual_seed(0)
    plain, names = without.build(build(ResEncConfig.model_validate(RESENC)))(first, second)
    assert abs(plain.item() - ours.item()) > 1e-3
    assert names.keys() == {"alignment", loss}


def test_what_cannot_be_used_is_refused():
    with pytest.raises(ValidationError, match="positions are for the losses 'nt_xent', 'dcl', 'moco_v3'"):
        config("dclw")
    for wrong in ({"axes": []}, {"axes": ["d", "d"]}, {"axes": ["x"]}, {"bandwidth": 0}, {"kernel": "box"}, {"t": 1}):
        with pytest.raises(ValidationError):
            config(**wrong)
    with pytest.raises(ValidationError, match="axes"):
        PositionsConfig()
    summed = SumConfig(terms=[TermConfig(objective=config())]).build(build(ResEncConfig.model_validate(RESENC)))
    for objective in (make(), summed):
        check_depth(objective, volumes=1)
        with pytest.raises(UserError, match=r"positions\.axes \['d'\].*images alone"):
            check_depth(objective, volumes=0)
    check_depth(make(axes=["d", "h"]), volumes=0)
    nowhere = dataclasses.replace(batch(PLACES), centres=None)
    with pytest.raises(ValueError, match="no centres"):
        make()(nowhere, nowhere)


@pytest.mark.parametrize("loss", ["nt_xent", "dcl", "moco_v3"])
def test_memory_is_foreseen(loss):
    run = PretrainConfig.model_validate({
        "run_dir": "run", "steps": 100, "backbone": RESENC, "objective": config(loss).model_dump(),
        "data": {"sources": [{"name": "a", "path": "a"}], "crop_3d": [8, 16, 16], "batch_3d": 4},
    })  # fmt: skip
    plain = run.model_copy(update={"objective": run.objective.model_copy(update={"positions": None})})
    peaks = [trace(each, (8, 16, 16), 4, False, "cpu").peak for each in (run, plain)]
    assert peaks[0] == pytest.approx(peaks[1], rel=0.02)


SCANS, DEPTHS, PAIRS = 6, 4, 16


def crops(scans, depths, seed):
    """Crops whose content is that of their depth and, twice as strong, that of their scan; two noisy views."""
    g = torch.Generator().manual_seed(seed)
    patterns = [torch.stack([F.interpolate(
        torch.randn(1, 1, 2, 4, 4, generator=torch.Generator().manual_seed(mix(kind, number) % 2**31)),
        size=(4, 8, 8), mode="trilinear")[0] for number in numbers.tolist()])
        for kind, numbers in enumerate((depths, scans))]  # fmt: skip
    clean = patterns[0] + 2 * patterns[1]
    return [clean + 0.3 * torch.randn(clean.shape, generator=g) for _ in range(2)]


def closeness(encoder):
    """Over new scans: how much closer features of one depth in different scans are than those of different depths."""
    scans, depths = (x.flatten() for x in torch.meshgrid(torch.arange(100, 112), torch.arange(DEPTHS), indexing="ij"))
    voxels = crops(scans, depths, 7)[0]
    with torch.no_grad():
        features = encoder.pooled(voxels, torch.ones_like(voxels, dtype=torch.bool))
    cosine = F.normalize(features - features.mean(0)) @ F.normalize(features - features.mean(0)).T
    same = depths[:, None] == depths
    return (cosine[same & (scans[:, None] != scans)].mean() - cosine[~same].mean()).item()


def taught(loss, shuffled=False):
    """The closeness after a short training; shuffled: each crop is told the depth of another."""
    objective = make(loss, bandwidth=0.1)
    optimiser = torch.optim.AdamW(objective.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(1)
    for step in range(60):
        scans = torch.randint(40, (PAIRS,), generator=g)
        depths = torch.randint(DEPTHS, (PAIRS,), generator=g)
        told = depths[torch.randperm(PAIRS, generator=g)] if shuffled else depths
        shares = [((depth + 0.5) / DEPTHS, NAN, NAN) for depth in told.tolist()]
        keys = [str(scan) for scan in scans.tolist()]
        plain = batch(shares, keys=keys)
        loss_value, _ = objective(*(dataclasses.replace(plain, voxels=view) for view in crops(scans, depths, step)))
        optimiser.zero_grad()
        loss_value.backward()
        optimiser.step()
        objective.after_step((step + 1) / 60)
    return closeness(objective.encoder)


@pytest.mark.parametrize("loss", ["nt_xent", "dcl", "moco_v3"])
def test_features_of_one_depth_in_different_scans_come_together(loss):
    """And they do not where the positions are shuffled: what is taught is the place, not more positives."""
    before = closeness(make(loss).encoder)
    found, shuffled = taught(loss), taught(loss, shuffled=True)
    print(loss, before, found, shuffled)
    assert found > before + 0.1
    assert found > shuffled + 0.1
