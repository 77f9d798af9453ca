"""Dense contrast at two ranks and every stage of ZeRO: what is compared lies within a pair, so nothing is gathered."""

import json

import pytest

CODE = """
import json, os
from pathlib import Path
import torch
from resumed import losses_when_resumed
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.datasets.loader import CropLoader
from scanfoundry.datasets.plan import DataConfig
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
from scanfoundry.pretrain.objectives.dense_contrast import DenseContrastConfig
from scanfoundry.pretrain.views import Views

world = join("cpu", 1)
root = Path(os.environ["TMP_PATH"])
data = DataConfig(sources=[{"name": "shapes", "synthetic": {}}], positives="study", crop_2d=(16, 16),
                  crop_3d=(4, 8, 16), batch_2d=4, batch_3d=4, workers=0)
with CropLoader(data, 0, world.rank, world.size) as loader:
    steps = [Views(data, 2)(next(loader)) for _ in range(4)]
assert {views[0].is_2d for views in steps} == {True, False}

def engine(stage):
    torch.manual_seed(0)
    backbone = ResEncConfig(features=(4, 8), blocks=(1, 1), strides=((2, 2, 2),))
    config = DenseContrastConfig(voxels=32, encoder_levels=(1,), projector_hidden=12, projector_dim=6)
    optimiser = OptimiserConfig(warmup_steps=0).filled("convolutional")
    return Engine(config.build(build(backbone)), optimiser, EngineConfig(zero_stage=stage), world, ["synthetic"])

def step(e, number):
    return e.step([steps[number]], 1e-3).loss

found = {}
for stage in STAGES:
    made = lambda: engine(stage)
    found[stage], _ = losses_when_resumed(made, step, world, root / f"{stage}-{world.size}")
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_stage_at_two_ranks_trains_and_resumes_as_one_rank_does(ranks):
    one = json.loads(ranks(CODE.replace("STAGES", "[0]"), 1).splitlines()[-1])
    two = json.loads(ranks(CODE.replace("STAGES", "range(4)"), 2).splitlines()[-1])
    assert len(two) == 4
    for stage, losses in two.items():
        assert losses == pytest.approx(one["0"], rel=1e-5), stage
