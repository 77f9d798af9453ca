"""Distillation of a released teacher, and of tokens by a following teacher, against plain restatements in float64."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from scanfoundry.backbones.models.description import ReleaseInfo
from scanfoundry.backbones.models.release import save_release
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
from scanfoundry.pretrain.memory.trace import fake_objective, trace
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
    parts = {"encoder": build(config).state_dict()}
    save_release(folder, parts, ReleaseInfo(backbone=config, **info), ["a" * 64, "b" * 64])
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

    return {name.removeprefix("encoder."): w for name, w in load_file(folder / "model.safetensors").items()}


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


def test_memory_is_estimated_without_the_teachers_weights(tmp_path):
    config = DistilConfig(teacher=released(tmp_path / "large", TEACHER.model_copy(update={"in_channels": 2})))
    run = run_config(tmp_path / "run", config)
    objective, _ = fake_objective(run)
    frozen = sum(p.numel() for p in objective.parameters() if not p.requires_grad)
    assert frozen == sum(p.numel() for p in build(TEACHER.model_copy(update={"in_channels": 2})).parameters())
    one = check(PretrainConfig, run.model_dump(mode="json") | {
        "backbone": STUDENT.model_dump() | {"in_channels": 1},
        "objective": DistilConfig(teacher=released(tmp_path / "one", TEACHER)).model_dump(),
    }, "test")  # fmt: skip
    assert trace(one, (1, 16, 16), 2, False, "cpu").forward > 0


ENGINE = """
import dataclasses, os
from pathlib import Path
import torch
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig, build_optimiser
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig

CONFIG = SumConfig.model_validate({"terms": [
    {"objective": {"name": "distil", "teacher": TEACHER}},
    {"objective": {"name": "token_distillation", "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2,
                   "momentum": 0.5}},
]})
OPT = OptimiserConfig(name="sgd", lr=1e-2, warmup_steps=0).filled("transformer")  # Adam enlarges rounding
STEPS = 3
world = join("cpu", 1)
root = Path(os.environ["TMP_PATH"])
def fresh():
    torch.manual_seed(0)
    return CONFIG.build(build(ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4))))
def batch(step, rows):
    g = torch.Generator().manual_seed(step)
    voxels, valid = torch.randn(4, 1, 1, 8, 8, generator=g), torch.ones(4, 1, 1, 8, 8, dtype=torch.bool)
    valid[0, ..., 4:] = False  # so that the ranks have other numbers of valid voxels
    n = len(voxels[rows])
    names = ["mr"] * n
    return Batch(voxels[rows], valid[rows], torch.arange(4)[rows] + 7, names, names, names, step)
def weights(e, name):
    e.save(root / name, {})
    barrier(world)
    return e.weights(root / name)
rows = slice(world.rank, 4, world.size)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_two_ranks_compute_what_one_does_and_resume_bit_for_bit(tmp_path, ranks, stage):
    teacher = released(tmp_path / "large", STUNetConfig(size="S", strides=((1, 2, 2),) * 2 + ((1, 1, 1),) * 3))
    ranks(
        f"TEACHER, STAGE = {teacher!r}, {stage}"
        + ENGINE
        + """
import unittest.mock
plain = fresh()
optimiser = build_optimiser(plain, OPT)
alone = unittest.mock.patch.multiple("scanfoundry.pretrain.losses.features",
                                     rank_and_size=lambda: (0, 1), summed=lambda x: x)
e = Engine(fresh(), OPT, EngineConfig(zero_stage=STAGE, clip=0.0, precision="fp32"), world)
before = {k: v.clone() for k, v in plain.state_dict().items()}
for step in range(STEPS):
    record = e.step([(batch(step, rows),)], 1e-2, (step + 1) / STEPS)
    with alone:
        optimiser.zero_grad()
        loss = plain(batch(step, slice(0, 4)))[0]
        loss.backward()
        for parameter in plain.parameters():  # what a step does not use is decayed all the same
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        optimiser.step()
        plain.after_step((step + 1) / STEPS)
    assert abs(record.loss - float(loss)) < 1e-4 * abs(record.loss), (step, record.loss, float(loss))
    now = weights(e, f"step-{step}")
for name, value in plain.state_dict().items():
    moved = (value - before[name]).norm()
    if "teacher" in name:
        assert torch.equal(now[name], before[name]) and moved == 0, name
    else:
        off = (now[name] - value).norm()
        assert off <= 1e-3 * moved + 1e-6, (name, float(off), float(moved))
f = Engine(fresh(), OPT, EngineConfig(zero_stage=STAGE, clip=0.0, precision="fp32"), world)
f.load(root / "step-0")
for step in range(1, STEPS):
    f.step([(batch(step, rows),)], 1e-2, (step + 1) / STEPS)
resumed = weights(f, "resumed")
assert all(torch.equal(now[name], resumed[name]) for name in now)
""",
        2,
    )
