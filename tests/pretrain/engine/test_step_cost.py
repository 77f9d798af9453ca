"""What a step costs beside the arithmetic: collectives, and numbers that the host reads."""

import pytest

COMMON = """
import torch
import torch.distributed as dist
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.collectives import summed
from scanfoundry.pretrain.distributed.world import join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig

class Objective(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    def forward(self, batch):
        error = (self.encoder(batch.voxels.flatten(1)) - 1).square().mean(1)
        return error.sum() / summed(torch.tensor(float(len(error)))), {"error": error.detach()}
    def after_step(self, progress):
        pass

def batch(number):
    voxels = torch.randn(2, 1, 1, 8, 8, generator=torch.Generator().manual_seed(number))
    return Batch(voxels, torch.ones_like(voxels, dtype=torch.bool), torch.arange(2), *[["mr"] * 2] * 3, number)

world = join("cpu", 1)
"""
COLLECTIVES = """
small, large = [], []
def spied(name, call):
    def run(*given, **options):
        tensors = [each for each in given if isinstance(each, torch.Tensor)]
        (small if tensors and max(each.numel() for each in tensors) < 100 else large).append(name)
        return call(*given, **options)
    return run
names = ("all_reduce", "reduce", "broadcast", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor",
         "all_gather_object", "barrier")
for name in names:
    setattr(dist, name, spied(name, getattr(dist, name)))
for accumulation in (1, 3):
    torch.manual_seed(0)
    config = EngineConfig(accumulation=accumulation)
    e = Engine(Objective(), OptimiserConfig(lr=1e-3).filled("convolutional"), config, world, ["ct", "mr"])
    for step in range(3):
        small.clear(), large.clear()
        views = [(batch(7 * step + each + 100 * world.rank),) for each in range(accumulation)]
        record = e.launch(views, 1e-3, asked=[1.0, 0.0, float(world.rank)]).read()
        assert record.asked == (2.0, 0.0, 1.0) and record.applied
    print(accumulation, len(small), set(small), len(large))
"""


def test_a_step_has_one_small_collective_and_one_for_each_micro_batch(ranks):
    lines = ranks(COMMON + COLLECTIVES, 2).splitlines()
    assert lines == ["1 2 {'all_reduce'} 1", "3 4 {'all_reduce'} 1"]


READS = """
class Reads(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.count = 0
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))

torch.manual_seed(0)
chosen = OptimiserConfig(name=NAME, lr=1e-3).filled("convolutional")
e = Engine(Objective(), chosen, EngineConfig(), world, ["mr"])
e._optimiser._on_host = lambda: False  # as on a GPU, where nothing may be read
if NAME == "adamw":
    for group in e._optimiser.param_groups:
        group["fused"] = True
for step in range(3):
    with Reads() as reads:
        pending = e.launch([(batch(step),)], 1e-3)
    print(reads.count, pending.read().applied)
"""


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_what_runs_on_a_gpu_reads_no_number_of_it(ranks, name):
    """On a CPU the one number that is read is whether what follows an applied step is called."""
    assert ranks(COMMON + f"NAME = {name!r}\n" + READS).splitlines() == ["1 True"] * 3
