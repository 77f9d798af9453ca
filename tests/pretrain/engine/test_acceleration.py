"""What a GPU gets and a CPU does not, as far as a CPU can tell."""

import copy

import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import ALONE, World
from scanfoundry.pretrain.engine import acceleration
from scanfoundry.pretrain.engine.engine import EngineConfig, deepspeed_config
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.spark import SparkConfig

RESENC = ResEncConfig(features=(8, 16), blocks=(1, 2), strides=((2, 2, 2),))
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def backends():
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    yield
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def test_kernels_are_set_for_a_gpu_alone(backends):
    torch.backends.cudnn.benchmark = False
    acceleration.set_kernels(CPU, tf32=True, autotune=True)
    assert not torch.backends.cudnn.benchmark
    for tf32, autotune in ((True, True), (False, True), (True, False)):
        acceleration.set_kernels(GPU, tf32, autotune)
        assert torch.backends.cudnn.benchmark == autotune
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == tf32


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_gradients_are_reduced_beside_the_backward_pass_on_a_gpu(stage):
    config = EngineConfig(zero_stage=stage)
    there, here = (deepspeed_config(config, World(0, 4, 0, 4, device)) for device in (GPU, CPU))
    assert there["zero_optimization"].get("overlap_comm", False) == (stage in (1, 2))
    assert "overlap_comm" not in here["zero_optimization"]
    assert here["gradient_clipping"] == (1.0 if stage else 0.0)  # at stage 0 the engine clips
    assert "communication_data_type" not in here
    assert deepspeed_config(EngineConfig(reduce="bf16"), ALONE)["communication_data_type"] == "bf16"


def test_compiled_blocks_compute_the_same_and_keep_the_names_of_weights():
    torch.manual_seed(0)
    plain = MAEConfig(block_2d=(4, 4), block_3d=(4, 4, 4)).filled("convolutional").build(build(RESENC))
    compiled = copy.deepcopy(plain)
    assert acceleration.compile_blocks(compiled, backend="eager") > 3
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    voxels, names = torch.randn(2, 1, 8, 8, 8), ["0", "1"]
    batch = Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), torch.arange(2), names, ["mr"] * 2, names, 0)
    losses = [objective(batch)[0] for objective in (plain, compiled)]
    for loss in losses:
        loss.backward()
    assert torch.equal(*losses)
    for mine, theirs in zip(compiled.parameters(), plain.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(mine.grad, theirs.grad)


def test_packed_maps_are_not_compiled():
    objective = SparkConfig(block_2d=(4, 4), block_3d=(4, 4, 4), decoder="own").build(build(RESENC))
    with pytest.raises(UserError, match=r"engine\.compile=true is not for objective 'spark'"):
        acceleration.compile_blocks(objective)


def test_gradients_that_are_sent_in_bf16_are_those_of_fp32_up_to_its_rounding(ranks):
    out = ranks(
        """
import torch
from torch import nn
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig

class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(64, 64)
    def forward(self, batch):
        return (self.encoder(batch.voxels.flatten(1)) - 1).square().mean(), {}
    def after_step(self, progress):
        pass

world = join("cpu", 1)
found = []
for reduce in ("fp32", "bf16"):
    torch.manual_seed(0)
    chosen = OptimiserConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0).filled("convolutional")
    e = Engine(Objective(), chosen, EngineConfig(reduce=reduce, clip=0), world)
    before = e.objective.encoder.weight.detach().clone()
    voxels = torch.randn(4, 1, 1, 8, 8, generator=torch.Generator().manual_seed(world.rank))
    names = ["mr"] * 4
    e.step([(Batch(voxels, voxels > -9, torch.arange(4), names, names, names, 0),)], 0.1)
    found.append((e.objective.encoder.weight.detach() - before).double())
print(float((found[0] - found[1]).norm() / found[0].norm()))
""",
        2,
    )
    assert 0 < float(out) < 4e-3
