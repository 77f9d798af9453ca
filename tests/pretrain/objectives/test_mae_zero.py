"""MAE on a U-Net and on Primus, and SparK with the backbone's own decoder, at two ranks and every stage of ZeRO."""

import json

import pytest

CODE = """
import json, os
from pathlib import Path
import torch
from resumed import losses_when_resumed
from scanfoundry.backbones import primus
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.spark import SparkConfig

primus.WIDTH_DEPTH_HEADS["S"] = (36, 2, 2)
UNET = ResEncConfig(features=(4, 8), blocks=(1, 1), strides=((2, 2, 2),))
BLOCKS = {"block_2d": (4, 4), "block_3d": (2, 4, 4)}
CASES = {
    "unet": (MAEConfig(mask_ratio=(0.4, 0.8), hide="token", **BLOCKS), UNET),
    "primus": (MAEConfig(), primus.PrimusConfig(size="S", patch=(2, 4, 4), grid=(2, 3, 4))),
    "spark": (SparkConfig(decoder="own", **BLOCKS), UNET),
}
world = join("cpu", 1)
root = Path(os.environ["TMP_PATH"])

def engine(case, stage):
    torch.manual_seed(0)
    config, backbone = CASES[case]
    optimiser = OptimiserConfig(warmup_steps=0).filled("convolutional")
    return Engine(config.build(build(backbone)), optimiser, EngineConfig(zero_stage=stage), world, ["mr"])

def step(e, number):
    rows = slice(4 // world.size * world.rank, 4 // world.size * (world.rank + 1))
    g = torch.Generator().manual_seed(number)
    shape = (1, 16, 16) if number % 2 else (4, 8, 16)
    voxels, names = torch.randn(4, 1, *shape, generator=g)[rows], ["abcd"[i] for i in range(4)][rows]
    valid, seeds = torch.ones(4, 1, *shape, dtype=torch.bool)[rows], torch.arange(4)[rows] + 4 * number
    return e.step([(Batch(voxels, valid, seeds, names, ["mr"] * len(names), names, number),)], 1e-3).loss

found = {}
for case in CASES:
    for stage in STAGES:
        made = lambda: engine(case, stage)
        found[f"{case} {stage}"], _ = losses_when_resumed(made, step, world, root / f"{case}-{stage}-{world.size}")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_stage_at_two_ranks_trains_and_resumes_as_one_rank_does(ranks):
    """Images and volumes by turns; that a resumed engine has the same bits is asserted in CODE."""
    one = json.loads(ranks(CODE.replace("STAGES", "[0]"), 1).splitlines()[-1])
    two = json.loads(ranks(CODE.replace("STAGES", "range(4)"), 2).splitlines()[-1])
    assert len(two) == 4 * len(one)
    for name, losses in two.items():
        assert losses == pytest.approx(one[f"{name.split()[0]} 0"], rel=1e-5), name
