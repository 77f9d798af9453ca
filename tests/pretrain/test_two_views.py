"""The two-view objectives under the real engine: any ZeRO stage and world size compute the same steps.

In float32, at a low rate: Adam makes steps of the rounding of gradients that are zero. That gradients are exact is
tested in float64, in tests/pretrain/objectives.
"""

import json

import pytest

pytestmark = pytest.mark.usefixtures("shallow_vit")

CODE = """
import json, os
from pathlib import Path
import numpy as np
import torch
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.datasets.batch import Batch
from scanfoundry.datasets.centres import Centres
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.positions import PositionsConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
world = join("cpu", 1)
rows = slice(world.rank, 4, world.size)
SIZES = {"projector_hidden": 64, "projector_dim": 16}
VIT = ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4))
RESENC = ResEncConfig(features=(8, 16, 32), blocks=(1, 1, 1), strides=((2, 2, 2), (1, 2, 2)))
CASES = [
    (ContrastiveConfig(loss="moco_v3", momentum=0.5, freeze_patch_embedding=True, **SIZES), VIT),
    (ContrastiveConfig(loss="dclw", **SIZES), RESENC),
    (BarlowTwinsConfig(**SIZES), VIT),
    (ContrastiveConfig(positions=PositionsConfig(axes=["d"], kernel="gaussian"), **SIZES), RESENC),
]

def batch(step, view):
    g = torch.Generator().manual_seed(100 * step + view)
    shape = (1, 8, 12) if step == 1 and view else (4, 8, 8)
    voxels = torch.randn(4, 1, *shape, generator=g)[rows]
    n = len(voxels)
    names = [["mr", "ct"][i % 2] for i in range(4)][rows]
    keys = ["a", "b", "c", "a"][rows]
    valid = torch.ones_like(voxels, dtype=torch.bool)
    shares = np.array([[0.1, 0.5, 0.5], [0.4, 0.5, 0.5], [0.2, 0.5, 0.5], [0.5, 0.5, 0.5]], np.float32)[rows]
    centres = Centres(shares, np.ones(n, np.bool_))
    return Batch(voxels, valid, torch.arange(4)[rows], keys, names, names, step, centres=centres)

def train(config, backbone, **engine):
    torch.manual_seed(0)
    optimiser = OptimiserConfig(lr=1e-4, warmup_steps=0).filled("convolutional")
    e = Engine(config.build(build(backbone)), optimiser, EngineConfig(**engine), world, ("ct", "mr"))
    records = [e.step([(batch(s, 0), batch(s, 1))], 1e-4, (s + 1) / 4) for s in range(4)]
    return e, records
"""

RUN = """
for index, (config, backbone) in enumerate(CASES):
    e, records = train(config, backbone, zero_stage=STAGE)
    folder = Path(os.environ["TMP_PATH"]) / f"{index}-{world.size}-{STAGE}"
    e.save(folder, {})
    barrier(world)
    weights = e.weights(folder)
    released = {k.removeprefix("encoder.") for k in weights if k.startswith("encoder.")}
    assert released == build(backbone).state_dict().keys(), released ^ build(backbone).state_dict().keys()
    followers = {k: v for k, v in weights.items() if k.startswith("follower.encoder.blocks.") and v.dim() == 2}
    lags = [float((v - weights[k.removeprefix("follower.")]).abs().mean()) for k, v in followers.items()]
    print(json.dumps([[r.loss for r in records], [r.metrics for r in records], lags]))
"""


def flat(value):
    if isinstance(value, dict):
        value = [value[key] for key in sorted(value)]
    return [number for part in value for number in flat(part)] if isinstance(value, list) else [value]


@pytest.mark.slow
def test_ranks_and_stages_compute_the_same_steps(ranks):
    runs = [ranks(f"{CODE}STAGE = {stage}{RUN}", size).splitlines() for stage, size in ((0, 1), (0, 2), (3, 2))]
    for one, *others in zip(*runs, strict=True):
        losses, metrics, lags = json.loads(one)
        assert all(metrics)
        for other in others:
            theirs = json.loads(other)
            assert theirs[0] == pytest.approx(losses, rel=2e-3)
            assert flat(theirs[1]) == pytest.approx(flat(metrics), rel=2e-2, abs=2e-3)
            assert theirs[2] == pytest.approx(lags, rel=2e-2)
    lags = json.loads(runs[0][0])[2]  # of the momentum encoder's matrices behind the encoder's
    assert len(lags) == 8
    assert min(lags) > 1e-5


@pytest.mark.slow
def test_bfloat16_at_zero_3(ranks):
    ranks(
        CODE
        + """
for config, backbone in CASES:
    _, records = train(config, backbone, zero_stage=3, precision="bf16")
    assert all(record.applied for record in records)
""",
        2,
    )
