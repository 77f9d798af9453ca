"""The GPU path without a GPU: every objective and augmentation on fake tensors; nothing waits for the device."""

from pathlib import Path

import pytest

SUPPORT = Path(__file__).parents[1] / "support"
COMMON = f"""
import sys
sys.path.insert(0, {str(SUPPORT)!r})
import numpy as np, torch
from fake_gpu import FakeGPU
from scanfoundry.datasets.batch import Batch, Crops
from scanfoundry.datasets.centres import Centres
from scanfoundry.pretrain.distributed.world import ALONE as world

gpu = FakeGPU()
"""
OBJECTIVES = """
from scanfoundry.backbones.mednext import MedNeXtConfig
from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig, WIDTH_DEPTH_HEADS
from scanfoundry.pretrain.ema import unless
from scanfoundry.pretrain.engine.averaged_encoder import EmaConfig, add_average, move_average
from scanfoundry.pretrain.memory.trace import Without
from scanfoundry.pretrain.objectives.barlow_twins import BarlowTwinsConfig
from scanfoundry.pretrain.objectives.contrastive import ContrastiveConfig
from scanfoundry.pretrain.objectives.dense_contrast import DenseContrastConfig
from scanfoundry.pretrain.objectives.distil import Distil, DistilConfig
from scanfoundry.pretrain.objectives.mae import MAEConfig
from scanfoundry.pretrain.objectives.positions import PositionsConfig
from scanfoundry.pretrain.objectives.spark import SparkConfig
from scanfoundry.pretrain.objectives.token_distillation import TokenDistillationConfig
from scanfoundry.pretrain.objectives.weighted_sum import SumConfig, TermConfig

WIDTH_DEPTH_HEADS["Ti"] = (48, 2, 2)
VIT = ViTConfig(size="Ti", patch_2d=(4, 4), patch_3d=(2, 4, 4))
STUNET = STUNetConfig(size="S", strides=((2, 2, 2), (1, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
RESENC = ResEncConfig(features=(8, 16), blocks=(1, 1), strides=((2, 2, 2),))
PRIMUS = PrimusConfig(size="S", patch=(2, 4, 4), grid=(2, 2, 3))
MAE = MAEConfig(decoder_dim=24, decoder_depth=1, decoder_heads=2)
SPARK = SparkConfig(block_2d=(4, 8), block_3d=(2, 4, 4), decoder_width=64)
OWN = SparkConfig(block_2d=(4, 8), block_3d=(2, 4, 4), decoder="own")
SMALL = {"projector_hidden": 16, "projector_dim": 8}
CASES = {
    "mae on vit": (VIT, MAE.model_copy(update={"gradient_weight": 0.5})),
    "mae on primus": (PRIMUS, MAEConfig()),
    "mae on resenc": (RESENC, MAEConfig(block_2d=(4, 8), block_3d=(2, 4, 4), mask_ratio=(0.4, 0.7), hide="token")),
    "spark on stunet": (STUNET, SPARK),
    "spark on mednext": (MedNeXtConfig(size="S"), SparkConfig(block_2d=(16, 16), block_3d=(16, 16, 16))),
    "spark on resenc": (RESENC, OWN),
    "contrastive": (RESENC, ContrastiveConfig(variance_weight=0.1, **SMALL)),
    "positions": (RESENC, ContrastiveConfig(loss="dcl", positions=PositionsConfig(axes=["h"]), **SMALL)),
    "dclw": (VIT, ContrastiveConfig(loss="dclw", **SMALL)),
    "moco_v3": (VIT, ContrastiveConfig(loss="moco_v3", **SMALL)),
    "barlow_twins": (VIT, BarlowTwinsConfig(mixed=1.0, mixed_warmup=0.5, **SMALL)),
    "dense_contrast": (RESENC, DenseContrastConfig(voxels=16, **SMALL)),
    "distil": (VIT, None),
    "token_distillation": (VIT, TokenDistillationConfig(top_blocks=2, decoder_dim=24, decoder_depth=1,
                                                        decoder_heads=2)),
    "sum": (VIT, SumConfig(terms=[TermConfig(objective=MAE), TermConfig(objective=ContrastiveConfig(**SMALL))])),
}

def view(shape, number):
    voxels, names = torch.zeros(3, 1, *shape), ["0", "1", "2"]
    centres = Centres(np.full((3, 3), 0.5, np.float32), np.ones(3, bool))
    labels = torch.arange(voxels[0].numel()).remainder(5).to(torch.uint8).view(1, 1, *shape).repeat(3, 1, 1, 1, 1)
    valid = gpu.like(voxels, torch.bool)
    return Batch(gpu.like(voxels), valid, torch.arange(3), names, ["mr"] * 3, names, 0, centres=centres, labels=labels)

def objective_of(backbone, config):
    with torch.device("meta"), Without():
        if config is None:
            return Distil(DistilConfig(teacher="resenc"), build(backbone), build(RESENC))
        return config.build(build(backbone))

for name in NAMES:
    backbone, config = CASES[name]
    objective = objective_of(backbone, config)
    add_average(objective, EmaConfig())
    gpu.move(objective)
    objective.train()
    large = isinstance(backbone, MedNeXtConfig)
    for shape in ((1, 32, 48), (32, 16, 32)) if large else ((1, 8, 24), (4, 8, 12)):
        with gpu, gpu.waits:
            views = [view(shape, number) for number in range(objective.views)]
            with torch.no_grad():
                objective(*views)  # tables of positions are copied once
            gpu.waits.count.clear()
            loss, metrics = objective(*views)
            assert loss.device == gpu.device and loss.requires_grad
            loss.backward()
            with unless(loss.detach() > 0):
                objective.after_step(0.5)
                move_average(objective)
        assert not gpu.waits.count, (name, shape, dict(gpu.waits.count))
        found = [parameter.grad for parameter in objective.encoder.parameters() if parameter.grad is not None]
        assert found and all(each.device == gpu.device for each in found)
print("done")
"""
NAMES = (
    ("mae on vit", "mae on primus", "mae on resenc"),
    ("spark on stunet",),
    ("spark on mednext",),
    ("spark on resenc", "contrastive", "positions"),
    ("dclw", "moco_v3", "barlow_twins"),
    ("dense_contrast", "distil", "token_distillation", "sum"),
)


@pytest.mark.slow
@pytest.mark.parametrize("names", NAMES, ids=lambda names: names[0])
def test_no_objective_waits_for_the_device_or_mixes_devices(ranks, names):
    assert ranks(COMMON + f"NAMES = {names!r}\n" + OBJECTIVES).split() == ["done"]


AUGMENTATION = """
from scanfoundry.datasets.augment.config import AugmentConfig
from scanfoundry.datasets.augment.pipeline import Augment
from scanfoundry.datasets.augment.transforms import KINDS
from scanfoundry.datasets.projection import project

on = {"probability": 1.0}
def only(*names):
    switches = {name: on | ({"axes": [0, 1, 2]} if name == "flip" else {}) for name in names if name != "window"}
    ct = {"invert": None} | ({"window": on} if "window" in names else {})
    return AugmentConfig.model_validate({"default": switches, "modalities": {"ct": ct}})

def crops(shape, inside):
    bounds = np.tile(np.array([[0, 0, 0], shape]), (3, 1, 1))
    if not inside:
        bounds[0, 1, 2] -= 2
    excluded = None if inside else torch.zeros(3, -(-int(np.prod(shape)) // 8), dtype=torch.uint8)
    flips = np.array([[False] * 3, [False, True, True], [True, False, False]])
    scaling = np.tile(np.array([-1, 1, 0, 1], np.float32), (3, 1))
    names = ["0", "1", "2"]
    return Crops(torch.zeros(3, 1, *shape, dtype=torch.int16), bounds, flips, scaling, torch.arange(3) + SEED, names,
                 ["ct", "mr", "us"], names, 0, excluded=excluded)

for shape in ((1, 9, 12), (6, 8, 10)):
    for inside in (True, False):
        for SEED, config in enumerate([AugmentConfig(preset="strong"), only(*KINDS), *(only(name) for name in KINDS)]):
            given = crops(shape, inside)
            for tensor in (given.voxels, given.excluded):
                if tensor is not None:
                    tensor.in_pinned_memory = True
            with gpu, gpu.waits:
                batch = given.copied(gpu.device).to(gpu.device)
                views = Augment(config, clean=True).views(batch, 2)
                if shape[0] > 1:
                    views.append(project(batch))
            assert all(each.voxels.device == each.valid.device == gpu.device for each in views)
            assert not gpu.waits.count, (shape, inside, config, dict(gpu.waits.count))
assert gpu.copies > 1000
print("done")
"""


@pytest.mark.slow
def test_no_augmentation_waits_for_the_device_or_mixes_devices(ranks):
    assert ranks(COMMON + AUGMENTATION).split() == ["done"]


WAITS = """
there, here = gpu.like(torch.zeros(4)), torch.arange(2)
WAITING = {
    "reading a number": lambda: there.sum().item(),
    "asking for a truth": lambda: bool(there.sum() > 0),
    "a copy to the host": lambda: there.cpu(),
    "a copy from memory that is not pinned": lambda: here.to(gpu.device, non_blocking=True),
    "a copy that waits": lambda: here.pin_memory().to(gpu.device),
    "a tensor of numbers of the host": lambda: torch.tensor([1.0], device=gpu.device),
    "the same by a tensor": lambda: there.new_tensor([1.0]),
    "indices of the host": lambda: there[here],
    "counting": lambda: (there > 0).nonzero(),
    "a mask": lambda: there[there > 0],
}
for name, wait in WAITING.items():
    gpu.waits.count.clear()
    with gpu, gpu.waits:
        try:
            wait()
        except Exception as error:  # the length of the result is not known
            assert name in ("counting", "a mask"), (name, error)
    assert sum(gpu.waits.count.values()) == 1, (name, dict(gpu.waits.count))
gpu.waits.count.clear()
with gpu, gpu.waits:
    there + torch.arange(4, device=gpu.device) + here.pin_memory().to(gpu.device, non_blocking=True).sum()
    try:
        there + torch.zeros(4)
        print("devices were mixed")
    except RuntimeError as error:
        assert "same device" in str(error)
assert not gpu.waits.count
print("done")
"""


def test_what_waits_is_counted_and_mixed_devices_are_refused(ranks):
    assert ranks(COMMON + WAITS).split() == ["done"]
