"""The estimate of memory against what real engines hold, and the trace that it rests on."""

import json

import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.checkpoint import model_state
from scanfoundry.pretrain.checkpoint.parameter_shards import parameter_shards
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import ALONE
from scanfoundry.pretrain.engine.optimiser import build_optimiser
from scanfoundry.pretrain.memory.estimate import Calculator, count
from scanfoundry.pretrain.memory.measured import Allocated
from scanfoundry.pretrain.memory.states import Model, Setting, usage
from scanfoundry.pretrain.memory.trace import Trace, fake_objective, trace

COMMON = """
import os, torch
import scanfoundry.pretrain.engine.engine as module
from scanfoundry.backbones.registry import build
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.config.run import PretrainConfig
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine.engine import Engine
from scanfoundry.pretrain.memory import estimate
from scanfoundry.pretrain.memory.measured import Allocated, Resident

# A bucket of the default 2 GB would hide everything else.
plain = module.deepspeed_config
def small(*given):
    config = plain(*given)
    config["zero_optimization"] |= {"reduce_bucket_size": 5_000_000, "stage3_prefetch_bucket_size": 1_000_000}
    return config
module.deepspeed_config = estimate.deepspeed_config = small

STRIDES = [[2, 2, 2]] * 3 + [[1, 1, 1]] * 2
HEAD = {"projector_hidden": 64, "projector_dim": 16}
SPARK = {"name": "spark", "block_2d": [8, 8], "block_3d": [8, 8, 8], "decoder_width": 64}
CASES = {
    "spark": (SPARK, {"name": "stunet", "size": "S", "strides": STRIDES}),
    "contrastive": ({"name": "contrastive", **HEAD}, {"name": "stunet", "size": "S", "strides": STRIDES}),
    "moco": ({"name": "contrastive", "loss": "moco_v3", **HEAD}, {"name": "vit", "size": "Ti", "patch_3d": [4, 4, 4]}),
    "mae": ({"name": "mae"}, {"name": "vit", "size": "Ti", "patch_3d": [4, 4, 4]}),
    "unet mae": ({"name": "mae", "hide": "token"}, {"name": "resenc", "features": [8, 16, 32], "blocks": [1, 2, 2],
                                                    "strides": [[2, 2, 2]] * 2}),
}

def configured(case, crop, batch, **engine):
    objective, backbone = CASES[case]
    data = {"sources": [{"name": "a", "path": "a"}], "crop_3d": crop, "batch_3d": batch}
    return PretrainConfig.model_validate({
        "run_dir": "run", "steps": 100, "backbone": backbone, "objective": objective, "data": data, "engine": engine})
"""

MEASURE = """
def run(config, world, meter):
    samples = config.data.batch_3d // world.size
    torch.manual_seed(0)
    with meter:
        objective = config.objective.build(build(config.backbone))
        engine = Engine(objective, config.optimiser, config.engine, world)
        shape = (samples, 1, *config.data.crop_3d)
        names = [str(i + samples * world.rank) for i in range(samples)]
        seeds = torch.arange(samples)
        for step in range(3):
            views = tuple(Batch(torch.randn(shape), torch.ones(shape, dtype=torch.bool), seeds, names, names, names, 0)
                          for _ in range(objective.views))
            if step:
                meter.begin()
            engine.step([views], 1e-3)
    return meter.peak
"""
ONE = """
import gc, json
world = join("cpu", 1)
for checkpointing in (False, True):
    config = configured(CASE, [32, 32, 32], 4, activation_checkpointing=checkpointing)
    measured = run(config, world, Allocated(world.device))
    usage = estimate.Calculator(config, 1, "cpu").usage()
    loaded = 4 * 32**3 * 5  # what a loader would hold beside the views
    print(json.dumps([checkpointing, measured, usage.peak - loaded]))
    gc.collect()
"""


def config(backbone, objective, crop, batch, **engine):
    data = {"sources": [{"name": "a", "path": "a"}], "crop_3d": crop, "batch_3d": batch}
    return PretrainConfig.model_validate({
        "run_dir": "run", "steps": 100, "backbone": backbone, "objective": objective, "data": data, "engine": engine,
    })  # fmt: skip


STRIDES = [[2, 2, 2]] * 3 + [[1, 1, 1]] * 2
STUNET = {"name": "stunet", "size": "S", "strides": STRIDES}
SPARK = {"name": "spark", "block_2d": [8, 8], "block_3d": [8, 8, 8], "decoder_width": 32}
CONTRASTIVE = {"name": "contrastive", "projector_hidden": 64, "projector_dim": 16}
MOCO = {"name": "contrastive", "loss": "moco_v3", "projector_hidden": 64, "projector_dim": 16}
VIT = {"name": "vit", "size": "Ti"}


@pytest.mark.parametrize(
    ("objective", "backbone"),
    [
        (SPARK, STUNET),
        (MOCO, VIT),
        ({"name": "mae"}, VIT),
        ({"name": "token_distillation"}, VIT),
        ({"name": "mae"}, STUNET),
    ],
)
def test_parameters_are_counted_as_the_built_objective_has_them(objective, backbone):
    settings = config(backbone, objective, [32, 32, 32], 2)
    built = settings.objective.build(build(settings.backbone))
    model = count(settings)
    of = {wanted: [p.numel() for p in built.parameters() if p.requires_grad == wanted] for wanted in (True, False)}
    assert (model.trainable, model.frozen, model.largest) == (sum(of[True]), sum(of[False]), max(of[True]))
    assert model.buffers == sum(b.numel() * b.element_size() for b in built.buffers())


def test_the_largest_network_is_counted_without_its_memory():
    """STU-Net-H's contracting path, by formula: convolutions and norms of 6 stages with 3 blocks each."""
    widths = [96 * factor for factor in (1, 2, 4, 8, 16, 16)]
    wanted = 0
    for i, o in zip([1, *widths[:-1]], widths, strict=True):
        wanted += (27 * i * o + o) + (27 * o * o + o) + (i * o + o) + 4 * o + 2 * (2 * (27 * o * o + o) + 4 * o)
    objective, _ = fake_objective(config({"name": "stunet", "size": "H"}, {"name": "spark"}, [64, 64, 64], 1))
    assert sum(p.numel() for p in objective.encoder.parameters()) == wanted


def pass_of(objective, backbone, crop=(32, 32, 32), samples=2, checkpointing=False, **engine):
    return trace(config(backbone, objective, crop, samples, **engine), crop, samples, checkpointing, "cpu")


def test_a_pass_is_traced_at_its_own_size_and_grows_with_the_samples():
    """Nearly in proportion: masks are drawn, and a contrastive loss compares all pairs. Nothing is extrapolated."""
    for objective, backbone in ((SPARK, STUNET), (CONTRASTIVE, STUNET), ({"name": "mae"}, VIT)):
        two, four, eight = (pass_of(objective, backbone, samples=n) for n in (2, 4, 8))
        assert (eight.forward - four.forward) / (four.forward - two.forward) == pytest.approx(2, rel=0.03)
        assert two.inputs * 4 == eight.inputs
        done = [done for done, _ in two.backward]
        assert done == sorted(done)
        settings = config(backbone, objective, (32, 32, 32), 2)
        used = [p for p in settings.objective.build(build(settings.backbone)).named_parameters() if "_2d" not in p[0]]
        assert done[-1] == 4 * sum(p.numel() for _, p in used)


def test_checkpointing_and_bf16_hold_less():
    plain = pass_of(CONTRASTIVE, STUNET, checkpointing=False)
    lean = pass_of(CONTRASTIVE, STUNET, checkpointing=True)
    half = pass_of(CONTRASTIVE, STUNET, precision="bf16")
    assert lean.forward < 0.6 * plain.forward
    assert half.forward < plain.forward


def test_the_trace_is_what_the_allocator_gives(one_thread_and_seed):
    """A forward and backward pass without an engine."""
    settings = config(VIT, {"name": "mae"}, [32, 32, 32], 4)
    objective = settings.objective.build(build(settings.backbone))
    shape = (4, 1, 32, 32, 32)
    names, valid = list("abcd"), torch.ones(shape, dtype=torch.bool)
    view = Batch(torch.randn(shape), valid, torch.arange(4), names, names, names, 0)
    objective(view)[0].backward()
    objective.zero_grad()
    with Allocated(torch.device("cpu")) as meter:
        meter.begin()
        objective(view)[0].backward()
    traced = trace(settings, (32, 32, 32), 4, False, "cpu")
    assert max(traced.forward, *(done + held for done, held in traced.backward)) == pytest.approx(meter.peak, rel=0.05)


BIG = Model(trainable=1_000_000_000, frozen=0, largest=10_000_000, buffers=0)
NO_PASS = Trace(0, 0, ((0, 0),))


def test_states_of_each_stage_by_formula():
    def held(stage, world, **options):
        return sum(usage(BIG, Setting(stage, world, "cuda", **options), [NO_PASS], 0).held.values()) / 1e9

    assert held(0, 8) == 12  # 4 weights, 8 of AdamW
    assert held(0, 8, optimiser="sgd") == 8
    assert held(1, 8) == held(2, 8) == 4 + 12 / 8  # a copy of the partition beside the flat weights
    assert held(3, 8, reduce_bucket=0) == 20 / 8  # partitions: weights, their copy, gradients, AdamW
    assert held(3, 8) == 20 / 8 + 2
    assert held(2, 8, offload=True) == pytest.approx(4, rel=0.02)
    assert usage(BIG, Setting(2, 8, "cuda", offload=True), [NO_PASS], 0).host == 20e9 / 8


@pytest.mark.slow
@pytest.mark.parametrize("case", ["spark", "mae", "unet mae"])
def test_estimate_against_allocations_of_one_process(ranks, case):
    lines = ranks(f"CASE = {case!r}\n{COMMON}{MEASURE}{ONE}", fresh=True).splitlines()
    rows = [json.loads(line) for line in lines if line.startswith("[")]
    assert len(rows) == 2
    for checkpointing, measured, estimated in rows:
        assert estimated / measured == pytest.approx(1, abs=0.10), (checkpointing, measured, estimated)


def test_alone_every_stage_is_stage_0_unless_it_offloads():
    """There is nobody to share with: neither DeepSpeed nor the estimate takes ZeRO's copies."""
    peaks = set()
    for stage in range(4):
        settings = config(VIT, {"name": "mae"}, [32, 32, 32], 2, zero_stage=stage)
        peaks.add(Calculator(settings, 1, "cpu").usage().peak)
        assert settings.engine.stage_of(1) == 0
        assert settings.engine.stage_of(2) == stage
    assert len(peaks) == 1
    assert config(VIT, {"name": "mae"}, [32, 32, 32], 2, zero_stage=2, offload=True).engine.stage_of(1) == 2


def test_the_host_has_the_copy_of_a_checkpoint():
    settings = config(VIT, {"name": "mae"}, [32, 32, 32], 2)
    objective = settings.objective.build(build(settings.backbone))
    optimiser = build_optimiser(objective, settings.optimiser)
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    shards = parameter_shards(objective, None, 0, ALONE)
    copied = model_state.snapshot(objective, shards, optimiser.state, {}, ALONE).tensors
    numel = sum(each.numel() * each.element_size() for key, each in copied.items() if not key.startswith("rng/"))
    assert Calculator(settings, 1, "cpu").usage().host == numel
    waiting = settings.model_copy(update={"background_checkpoints": False})
    assert Calculator(waiting, 1, "cpu").usage().host == 0


TWO = """
import json, sys
world = join("cpu", 1)
rows = []
warm = configured("mae", [8, 8, 8], 2, zero_stage=STAGE)  # loads libraries
run(warm, world, Resident())
config = configured("mae", [32, 32, 32], 4, zero_stage=STAGE)
config = config.model_copy(update={"backbone": config.backbone.model_copy(update={"size": "S"})})
measured = run(config, world, Resident())
usage = estimate.Calculator(config, world.size, "cpu").usage()
print(json.dumps([measured, usage.peak - 2 * 32**3 * 5]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_estimate_against_the_memory_of_one_of_two_processes(ranks, stage):
    """By the system's count, which has the allocator's own overhead in it."""
    lines = ranks(f"STAGE = {stage}\n{COMMON}{MEASURE}{TWO}", 2, True, MALLOC_MMAP_THRESHOLD_="65536").splitlines()
    measured, estimated = next(json.loads(line) for line in lines if line.startswith("["))
    assert estimated / measured == pytest.approx(1, abs=0.15), (measured, estimated)
