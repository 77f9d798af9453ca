"""Distillation of a released teacher, and of tokens by a following teacher, against plain restatements in float64."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scanfoundry.backbones.models.release import ReleaseInfo, save_release
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.configs.loading import check
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.intensity import IntensityConfig
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.objectives.distil import DistilConfig
from scanfoundry.pretrain.objectives.token_distillation import TokenDistillationConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig, TermConfig
from scanfoundry.pretrain.training.initialize import Origin
from scanfoundry.pretrain.training.teachers import bring_teachers, record_teachers, with_teachers

STUDENT = ResEncConfig(features=(8, 12), blocks=(1, 1), strides=((1, 2, 2),), in_channels=2)
TEACHER = STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)), in_channels=1)
VIT = ViTConfig(size="Ti", in_channels=2, patch_2d=(4, 4), patch_3d=(2, 4, 4))
SHAPES = [(1, 8, 24), (4, 8, 12)]  # (D, H, W), non-cubic grids
BLOCKS = {1: (1, 4, 4), 4: (2, 4, 4)}  # by depth of the crop


def make_batch(shape, padded=False):
    """Three random crops; padded: the last rows of W of the first one lie outside the scan."""
    torch.manual_seed(1)
    valid = torch.ones(3, 1, *shape, dtype=torch.bool)
    if padded:
        valid[0, ..., -5:] = False
    voxels = torch.randn(3, 2, *shape, dtype=torch.float64) * valid
    return Batch(voxels, valid, torch.arange(3) + 11, ["0", "1", "2"], ["mr"] * 3, ["a"] * 3, 0)


def released(folder, config, **info):
    torch.manual_seed(5)
    save_release(folder, build(config).state_dict(), ReleaseInfo(backbone=config, **info), ["a" * 64, "b" * 64])
    return str(folder)


def run_config(folder, objective):
    return check(PretrainConfig, {
        "run_dir": str(folder), "steps": 3, "backbone": STUDENT.model_dump(), "objective": objective.model_dump(),
        "data": {"sources": [{"name": "a", "path": "x"}], "crop_2d": [16, 16]},
        "optimiser": {"warmup_steps": 1},
    }, "test")  # fmt: skip


def apart(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2).sum())


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_distil_as_a_naive_loop(tmp_path, shape, padded):
    config = DistilConfig(teacher=released(tmp_path / "large", TEACHER), dense_weight=0.5, pooled_weight=2.0)
    torch.manual_seed(0)
    objective = config.build(build(STUDENT)).double()
    bring_teachers(run_config(tmp_path / "run", config), objective, fresh=True)
    batch = make_batch(shape, padded=padded)
    loss, metrics = objective(batch)
    teacher = build(TEACHER)
    teacher.load_state_dict(_weights(tmp_path / "large"))
    wanted = teacher.double()(batch.voxels.mean(1, keepdim=True))[-1].detach()  # the stem for two channels halves each
    given = objective.encoder(batch.voxels)[-1]
    projected = F.interpolate(objective.match.dense(given), size=wanted.shape[2:], mode="trilinear").detach()
    size = [n // m for n, m in zip(shape, wanted.shape[2:], strict=True)]
    above = below = 0.0
    for b, *at in np.ndindex(3, *wanted.shape[2:]):
        box = tuple(slice(i * s, i * s + s) for i, s in zip(at, size, strict=True))
        share = batch.valid[(b, 0, *box)].double().mean().item()
        above += share * apart(projected[(b, slice(None), *at)], wanted[(b, slice(None), *at)])
        below += share
    whole = []
    for b in range(3):
        means = []
        for maps in (given.detach(), wanted):
            cells = [n // m for n, m in zip(shape, maps.shape[2:], strict=True)]
            rows, counts = [], []
            for at in np.ndindex(*maps.shape[2:]):
                box = tuple(slice(i * s, i * s + s) for i, s in zip(at, cells, strict=True))
                counts.append(batch.valid[(b, 0, *box)].double().mean().item())
                rows.append(maps[(b, slice(None), *at)].numpy())
            means.append(np.average(rows, 0, counts))
        head = objective.match.pooled
        mine = head.weight.detach().numpy() @ means[0] + head.bias.detach().numpy()
        whole.append(apart(mine, means[1]))
    assert loss.item() == pytest.approx(0.5 * above / below + 2.0 * np.mean(whole), rel=1e-10)
    assert metrics["pooled"].tolist() == pytest.approx(whole, rel=1e-10)
    loss.backward()
    assert all(p.grad is None for p in objective.teacher.parameters())
    assert all(p.grad is not None for p in objective.match.parameters())


def _weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_teachers_weights_patients_and_terms_are_handed_on(tmp_path):
    name = released(tmp_path / "large", TEACHER, licence="cc-by-4.0", citation="Somebody 2026")
    config = SumConfig(terms=[TermConfig(objective=DistilConfig(teacher=name), weight=0.5)])
    assert config.label == "0.5 distil of large"
    objective, run = config.build(build(STUDENT)), run_config(tmp_path / "run", config)
    taught = bring_teachers(run, objective, fresh=True)
    assert list(objective.teachers()) == [name]
    assert torch.equal(objective.terms["distil"].teacher.encoder.conv_blocks_context[1][0].conv1.weight,
                       _weights(tmp_path / "large")["conv_blocks_context.1.0.conv1.weight"])  # fmt: skip
    run.run_dir.mkdir()
    record_teachers(run, taught)
    (tmp_path / "large" / "patients.txt").unlink()
    for known in (taught, bring_teachers(run, objective, fresh=False)):  # which reads the run folder alone
        origin = with_teachers(Origin.model_validate({"said": "from here", "patients": ["c" * 64]}), known)
        assert origin.patients == ["a" * 64, "b" * 64, "c" * 64]
        assert origin.licence == "of its teacher: cc-by-4.0"
        assert origin.citation == "of its teacher: Somebody 2026"
        assert "with the teacher" in origin.summary
    (run.run_dir / "teachers.json").write_text("{")
    with pytest.raises(UserError, match="whom the run's teachers had seen"):
        bring_teachers(run, objective, fresh=False)


def test_a_teacher_that_saw_other_intensities_is_refused(tmp_path):
    other = json.loads(IntensityConfig(percentiles=(5, 95)).model_dump_json())
    config = DistilConfig(teacher=released(tmp_path / "large", TEACHER, intensity=other))
    with pytest.raises(UserError, match=r"set data\.intensity"):
        bring_teachers(run_config(tmp_path / "run", config), config.build(build(STUDENT)), fresh=True)


def test_mistakes_in_the_configuration_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nothing would be learnt"):
        DistilConfig(teacher="x", dense_weight=0, pooled_weight=0)
    with pytest.raises(UserError, match="no file, run folder or installed model"):
        DistilConfig(teacher="nobody").build(build(STUDENT))
    with pytest.raises(UserError, match="needs the tokens of backbone 'vit'"):
        TokenDistillationConfig().build(build(STUDENT))
    with pytest.raises(UserError, match="has 12 blocks; lower it"):
        TokenDistillationConfig(top_blocks=13).build(build(VIT))
    name = released(tmp_path / "large", TEACHER)
    twice = SumConfig(terms=[TermConfig(objective=DistilConfig(teacher=name), name=n) for n in ("a", "b")])
    with pytest.raises(UserError, match="merge them into one"):
        twice.build(build(STUDENT)).teachers()


def tokens(**options):
    torch.manual_seed(0)
    small = {"decoder_dim": 64, "decoder_depth": 2, "decoder_heads": 2}
    return TokenDistillationConfig(**small, **options).build(build(VIT)).double()


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_token_distillation_as_a_naive_loop(shape, padded):
    objective, batch = tokens(top_blocks=3, beta=0.5), make_batch(shape, padded=padded)
    loss, metrics = objective(batch)
    teacher, mask = objective.follower.encoder, objective.mask(batch)
    x = torch.cat((teacher.cls_token.expand(3, -1, -1), teacher.embed(batch.voxels)), 1)
    layers = []
    for block in teacher.blocks:
        x = block(x)
        layers.append(x[:, 1:].detach())
    predicted = objective.predict(batch.voxels, mask).detach()
    grid, block = mask.shape[2:], BLOCKS[shape[0]]
    above, below = np.zeros(3), np.zeros(3)
    for b, z, y, w in np.ndindex(3, *grid):
        if not mask[b, 0, z, y, w]:
            continue
        token = (z * grid[1] + y) * grid[2] + w
        wanted = 0.0
        for layer in layers[-3:]:
            vector = layer[b, token].numpy()
            wanted = wanted + (vector - vector.mean()) / np.sqrt(vector.var() + 1e-5) / 3
        error = np.abs(predicted[b, token].numpy() - wanted)
        box = tuple(slice(i * s, i * s + s) for i, s in zip((z, y, w), block, strict=True))
        share = batch.valid[(b, 0, *box)].double().mean().item()
        above[b] += share * np.where(error < 0.5, error**2, error - 0.25).mean()
        below[b] += share
    assert loss.item() == pytest.approx(above.sum() / below.sum(), rel=1e-10)
    assert metrics["token_distance"].tolist() == pytest.approx((above / below).tolist(), rel=1e-10)
    loss.backward()
    assert all(p.grad is None for p in objective.follower.parameters())


@pytest.mark.parametrize("shape", SHAPES)
def test_the_student_sees_no_hidden_voxel_and_the_teacher_sees_all(shape):
    objective, batch = tokens(), make_batch(shape)
    mask = objective.mask(batch)
    hidden = mask
    for axis, size in enumerate(BLOCKS[shape[0]], start=2):
        hidden = hidden.repeat_interleave(size, axis)
    disturbed = torch.where(hidden, 3 * torch.randn_like(batch.voxels), batch.voxels)
    assert torch.equal(objective.predict(disturbed, mask), objective.predict(batch.voxels, mask))
    before, after = objective.targets(batch.voxels), objective.targets(disturbed)
    assert (before != after).any(-1).all()  # at the visible places too
    changed = objective(dataclasses.replace(batch, voxels=disturbed))[0]
    assert changed.item() != objective(batch)[0].item()


def test_the_teacher_follows_ever_more_slowly():
    objective = tokens(momentum=0.5)
    start = {name: p.clone() for name, p in objective.encoder.named_parameters()}
    for parameter in objective.encoder.parameters():
        parameter.data += 1
    objective.after_step(0.0)
    for name, parameter in objective.follower.encoder.named_parameters():
        torch.testing.assert_close(parameter, start[name] + 0.5)
    objective.after_step(1.0)
    for name, parameter in objective.follower.encoder.named_parameters():
        torch.testing.assert_close(parameter, start[name] + 0.5)


def test_a_teacher_of_tokens_may_teach_a_primus(tmp_path):
    config = PrimusConfig(size="S", patch=(2, 4, 4), grid=(2, 2, 3), in_channels=2)
    objective = DistilConfig(teacher=released(tmp_path / "large", VIT)).build(build(config)).double()
    loss, _ = objective(make_batch((4, 8, 12)))
    loss.backward()
    assert loss.isfinite()
