"""Activation checkpointing: the same bits, the same names, and less memory, for every backbone and objective."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.protocol import Encoder
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig, STUNetEncoder
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.engine import activation_checkpointing
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.spark import SparkConfig
from scanfoundry.pretrain.objectives.token_distillation import TokenDistillationConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig, TermConfig

STUNET = STUNetConfig(size="S", strides=((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1)))
MEDNEXT = MedNeXtConfig(size="S")
RESENC = ResEncConfig(features=(16, 32, 48), blocks=(1, 2, 2), strides=((2, 2, 2), (2, 2, 2)))
VIT = ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(8, 8, 8), drop_path=0.5, layer_scale=1e-2)
HEAD = {"projector_hidden": 32, "projector_dim": 16}
MAE = MAEConfig(gradient_weight=0.5)
CASES = {
    "spark stunet": (SparkConfig(block_2d=(8, 8), block_3d=(8, 8, 8), decoder_width=32), STUNET),
    "spark mednext": (SparkConfig(block_2d=(16, 16), block_3d=(16, 16, 16), decoder_width=32), MEDNEXT),
    "spark resenc": (SparkConfig(block_2d=(8, 8), block_3d=(8, 8, 8), decoder_width=32), RESENC),
    "unet mae resenc": (MAEConfig(mask_ratio=(0.4, 0.8)), RESENC.model_copy(update={"blocks": (3, 1, 1)})),
    "primus mae": (MAEConfig(), PrimusConfig(size="S")),
    "contrastive primus": (ContrastiveConfig(**HEAD), PrimusConfig(size="S")),
    "mae": (MAE, VIT),
    "contrastive stunet": (ContrastiveConfig(**HEAD), STUNET),
    "moco vit": (ContrastiveConfig(loss="moco_v3", **HEAD), VIT),
    "barlow twins mednext": (BarlowTwinsConfig(mixed=1.0, **HEAD), MEDNEXT),
    "token_distillation": (TokenDistillationConfig(decoder_dim=64, decoder_depth=2, decoder_heads=2), VIT),
    "sum": (SumConfig(terms=[TermConfig(objective=MAE), TermConfig(objective=ContrastiveConfig(**HEAD))]), VIT),
}


def make(case):
    torch.manual_seed(0)
    config, backbone = CASES[case]
    return config.build(build(backbone)).double()


def views(count, shape):
    voxels = torch.randn(count, 2, 1, *shape, dtype=torch.float64)
    valid, names = torch.ones(2, 1, *shape, dtype=torch.bool), ["a", "b"]
    return [Batch(v, valid, torch.arange(2), names, names, names, 0) for v in voxels]


def losses_and_gradients(objective, shape, seed=1):
    torch.manual_seed(seed)
    objective.zero_grad()
    loss, metrics = objective(*views(objective.views, shape))
    loss.backward()
    state = torch.get_rng_state()
    return [loss, *metrics.values(), state, *(p.grad for p in objective.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shape", [(1, 32, 32), (16, 32, 32)], ids=["2d", "3d"])
@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_random_state_are_the_same_bits(case, shape):
    """Dropped paths (ViT at 0.5) are the same ones when computed again."""
    plain, lean = make(case), make(case)
    activation_checkpointing.apply(lean)
    assert list(plain.state_dict()) == list(lean.state_dict())
    assert any(True for _ in activation_checkpointing.blocks(lean))
    for one, other in zip(losses_and_gradients(plain, shape), losses_and_gradients(lean, shape), strict=True):
        assert torch.equal(one, other)
    if "vit" in case or case in ("mae", "sum"):  # the seed matters: paths were dropped at all
        assert not torch.equal(losses_and_gradients(lean, shape, 1)[0], losses_and_gradients(lean, shape, 2)[0])


def kept(objective, shape):
    """Bytes that the graph of a forward pass keeps for the backward pass, parameters left out."""
    storages, weights = {}, {p.untyped_storage().data_ptr() for p in objective.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)
        return tensor

    held = []
    inputs = views(objective.views, shape)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss, _ = objective(*inputs)
    assert loss.requires_grad
    return sum(size for place, size in storages.items() if place not in weights)


@pytest.mark.parametrize("case", CASES)
def test_less_is_kept_for_the_backward_pass(case):
    """Under half, whatever the objective: what stays is the blocks' inputs, and what lies outside of blocks."""
    plain, lean = make(case), make(case)
    activation_checkpointing.apply(lean)
    assert kept(lean, (32, 32, 32)) < 0.5 * kept(plain, (32, 32, 32))


def test_a_block_is_wrapped_once_and_a_copy_computes_with_its_own_weights():
    objective = make("mae")
    activation_checkpointing.apply(objective)
    activation_checkpointing.apply(objective)
    block = next(activation_checkpointing.blocks(objective))
    calls, x = [], torch.randn(1, 3, 192, dtype=torch.float64, requires_grad=True)
    block.norm1.register_forward_hook(lambda *_: calls.append(1))
    block(x).sum().backward()
    assert len(calls) == 2
    twin = copy.deepcopy(block)
    nn.init.zeros_(twin.mlp.fc2.weight)
    assert not torch.equal(block.eval()(x), twin.eval()(x))


ZERO = """
import os, sys, torch
from pathlib import Path
sys.path.insert(0, os.environ["HERE"])
from test_activation_checkpointing import CASES, build
from scanfoundry.datasets.batch import Batch
from scanfoundry.pretrain.distributed.world import barrier, join
from scanfoundry.pretrain.engine.engine import Engine, EngineConfig
from scanfoundry.pretrain.engine.optimiser import OptimiserConfig
world = join("cpu", 1)

def train(case, **options):
    torch.manual_seed(0)
    config, backbone = CASES[case]
    objective = config.build(build(backbone))
    optimiser = OptimiserConfig(lr=1e-3, warmup_steps=0).filled("convolutional")
    engine = Engine(objective, optimiser, EngineConfig(**options), world, ("mr",))
    torch.manual_seed(world.rank)
    losses = []
    for step in range(3):
        g = torch.Generator().manual_seed(10 * step + world.rank)
        shape = (1, 32, 32) if step == 1 else (16, 32, 32)
        voxels = torch.randn(objective.views, 2, 1, *shape, generator=g)
        valid, seeds = torch.ones(2, 1, *shape, dtype=torch.bool), torch.arange(2) + 2 * world.rank
        keys = [str(seed) for seed in seeds.tolist()]
        batches = [Batch(v, valid, seeds, keys, ["mr"] * 2, keys, step) for v in voxels]
        losses.append(engine.step([tuple(batches)], 1e-3).loss)
    folder = Path(os.environ["TMP_PATH"]) / f"{case}{options}"
    engine.save(folder, {})
    barrier(world)
    return losses, engine.weights(folder)

for case in CHOSEN:
    losses, weights = train(case, **OPTIONS)
    lean_losses, lean = train(case, activation_checkpointing=True, **OPTIONS)
    assert losses == lean_losses, (case, losses, lean_losses)
    assert weights.keys() == lean.keys()
    assert all(torch.equal(weights[key], lean[key]) for key in weights), case
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "cases"),
    [
        ({"zero_stage": 0}, ["spark resenc"]),
        ({"zero_stage": 1}, ["moco vit"]),
        ({"zero_stage": 2}, ["spark mednext"]),
        ({"zero_stage": 3}, ["spark stunet", "contrastive stunet", "mae"]),
        ({"zero_stage": 3, "precision": "bf16"}, ["spark resenc"]),
    ],
    ids=str,
)
def test_the_same_bits_under_every_stage_at_two_ranks(ranks, shallow_vit, options, cases):
    """ZeRO 3 gathers weights again for the second forward pass: of modules, and of the packed walk."""
    code = f"CHOSEN, OPTIONS = {cases}, {options}\n{ZERO}"
    ranks(code, 2, HERE=str(Path(__file__).parent))


class Plain(STUNetEncoder):
    """An encoder of somebody else's, of one layer."""

    def __init__(self):
        nn.Module.__init__(self)
        self.layer = nn.Conv3d(1, 1, 1)

    block_modules = Encoder.block_modules


class Saying(Plain):
    def block_modules(self):
        yield self.layer


def test_a_backbone_it_does_not_know_is_refused_or_says_its_blocks():
    with pytest.raises(UserError, match="would do nothing for Plain, which names no block"):
        activation_checkpointing.apply(nn.ModuleDict({"encoder": Plain()}))
    encoder = Saying()
    activation_checkpointing.apply(nn.ModuleDict({"encoder": encoder}))
    assert "forward" in vars(encoder.layer)
