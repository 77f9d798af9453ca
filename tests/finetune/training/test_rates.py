"""Rates of every group at each step, against plain restatements."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scanfoundry.backbones.primus import PrimusConfig
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.recipes import Arm
from scanfoundry.finetune.config.study import AugmentationConfig, ScheduleConfig, SelfTrainingConfig, ValidationConfig
from scanfoundry.finetune.heads.classification import ClassificationModel
from scanfoundry.finetune.training.layers import check_layers, layers_of
from scanfoundry.finetune.training.optimisation import Preset, Scales, make_optimiser, peak_lr, scales_of
from scanfoundry.finetune.training.rates import Rates
from scanfoundry.finetune.training.setup import TrainSetup

ADAMW = Preset(optimiser="adamw", lr=1e-3, weight_decay=0.05)


def setup(recipe, seconds=None, **schedule):
    told = ScheduleConfig(**schedule), AugmentationConfig(), ValidationConfig(), SelfTrainingConfig()
    return TrainSetup(Arm(recipe, recipe, True), 0, *told, torch.device("cpu"), seconds)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return ClassificationModel(build(ViTConfig(size="Ti", registers=2)), 3)


def followed(model, course, scales, loaded=None, seconds=None):
    """(encoder, loaded): rate at each step, and whether gradients are wanted."""
    optimiser = make_optimiser(model, ADAMW, scales, loaded)
    rates, found = Rates(optimiser, course, scales.decoder), {}
    steps = course.schedule.steps
    for step in range(steps):
        rates.set(step, course.done(step, 0.0 if seconds is None else seconds * step))
        for group in optimiser.param_groups:
            wanted = {p.requires_grad for p in group["params"]}
            found.setdefault((group["encoder"], group["loaded"]), []).append((group["lr"], wanted))
    return found


def test_warmup_rises_over_its_share_to_a_tenth_of_the_rate_and_falls(vit):
    found = followed(vit, setup("warmup", steps=100), Scales(all=0.1))
    for rates in found.values():
        for step, (rate, wanted) in enumerate(rates):
            fallen = max(0.0, (step - 5) / 95)
            expected = 1e-4 * min(1.0, (step + 1) / 5) * 0.5 * (1 + math.cos(math.pi * fallen))
            assert rate == pytest.approx(expected, rel=1e-9)
            assert wanted == {True}


def test_sawtooth_trains_what_is_new_first_and_then_everything(vit):
    found = followed(vit, setup("sawtooth", steps=100, decoder_share=0.2, warmup_share=0.1), Scales(0.1, decoder=0.5))
    for step in range(100):
        (encoder, moving), (head, _) = found[True, True][step], found[False, False][step]
        if step < 20:
            rise, fallen = min(1, (step + 1) / 10), max(0.0, (step - 10) / 10)
            assert (encoder, moving) == (0.0, {False})
            assert head == pytest.approx(0.5e-4 * rise * 0.5 * (1 + math.cos(math.pi * fallen)))
        else:
            rise, fallen = min(1, (step - 19) / 10), max(0.0, (step - 30) / 70)
            assert moving == {True}
            assert encoder == pytest.approx(1e-4 * rise * 0.5 * (1 + math.cos(math.pi * fallen)), abs=1e-12)
            assert head == encoder


def test_of_a_budget_the_rates_follow_the_time(vit):
    course = setup("sawtooth", seconds=50.0, steps=100, decoder_share=0.2, warmup_share=0.1)
    timed = followed(vit, course, Scales(), seconds=0.5)  # half a second for each step: as by steps
    stepped = followed(vit, setup("sawtooth", steps=100, decoder_share=0.2, warmup_share=0.1), Scales())
    for kind, rates in timed.items():
        assert rates[0][0] == 0  # nobody knows yet how long a step takes
        for ours, theirs in zip(rates[1:], stepped[kind][1:], strict=True):
            assert ours[0] == pytest.approx(theirs[0], abs=1e-9)
            assert ours[1] == theirs[1]


def test_parameters_that_a_checkpoint_has_set_may_be_more_than_the_encoder(vit):
    loaded = frozenset(name for name, _ in vit.named_parameters() if name != "linear.weight")
    found = followed(vit, setup("sawtooth", steps=20, decoder_share=0.5), Scales(encoder=0.5), loaded)
    assert set(found) == {(True, True), (False, True), (False, False)}
    assert [rate for rate, _ in found[False, True]][:10] == [0.0] * 10
    assert all(rate > 0 for rate, _ in found[False, False][:10])
    assert found[True, True][12][0] == pytest.approx(0.5 * found[False, True][12][0])
    staged = followed(vit, setup("staged", steps=10, frozen_steps=4, warmup_steps=0), Scales(), loaded)
    assert [rate for rate, _ in staged[True, True]][:4] == [0.0] * 4  # the encoder alone stands still
    assert all(rate > 0 for rate, _ in staged[False, True])


@pytest.mark.parametrize(
    ("config", "first", "last"),
    [
        (ViTConfig(size="Ti", registers=2), ("patch_embed_2d", "patch_embed_3d", "cls_token", "reg_token"), ("norm.",)),
        (PrimusConfig(size="S", grid=(2, 2, 2)), ("patch_embed", "pos_embed"), ("norm.",)),
    ],
)
def test_layers_of_a_transformer_are_those_of_mae(config, first, last):
    encoder = build(config)
    found, count = layers_of(encoder)
    assert count == 13
    for name, weight in encoder.named_parameters():
        if name.startswith("blocks."):
            expected = int(name.split(".")[1]) + 1
        else:
            assert name.startswith(first + last)
            expected = 13 if name.startswith(last) else 0
        assert found[id(weight)] == expected


def test_each_layer_has_the_rate_of_the_next_one_times_the_decay(vit):
    optimiser = make_optimiser(vit, ADAMW, Scales(encoder=0.5, layer_decay=0.75), None, vit.encoder)
    rates = {id(p): group["base_lr"] for group in optimiser.param_groups for p in group["params"]}
    assert len(rates) == len(list(vit.parameters()))
    for name, weight in vit.named_parameters():
        inside = name.removeprefix("encoder.")
        layer = 0 if not inside.startswith(("blocks", "norm")) else 13
        if inside.startswith("blocks."):
            layer = int(inside.split(".")[1]) + 1
        expected = 1e-3 if inside == name else 0.5e-3 * 0.75 ** (13 - layer)
        assert rates[id(weight)] == pytest.approx(expected, rel=1e-12), name


def test_a_backbone_without_blocks_refuses_a_decay_by_layers():
    without = SimpleNamespace(block_modules=lambda: iter(()), config=SimpleNamespace(name="flat"))
    check_layers(without, 1.0)
    with pytest.raises(UserError, match="'flat' names none; leave it out, or take schedule"):
        check_layers(without, 0.75)


def test_what_stands_between_blocks_belongs_to_the_next_one():
    parts = nn.ModuleDict(
        {"stem": nn.Linear(1, 1), "a": nn.Linear(1, 1), "down": nn.Linear(1, 1), "b": nn.Linear(1, 1)}
    )
    parts.block_modules = lambda: iter((parts["a"], parts["b"]))
    found, last = layers_of(parts)
    assert {name.split(".")[0]: found[id(p)] for name, p in parts.named_parameters()} == {
        "stem": 0, "a": 1, "down": 2, "b": 2
    }  # fmt: skip
    assert last == 3


def test_the_scratch_arm_keeps_its_rate_whatever_the_others_take():
    schedule = ScheduleConfig(lr=2e-3, pretrained_lr_scale=0.3, encoder_lr_scale=0.1, layer_decay=0.7)
    scratch, full = Arm("scratch", "full", False), Arm("full", "full", True)
    for family in ("convolutional", "transformer"):
        assert scales_of(schedule, scratch, family) == Scales()
        assert peak_lr(schedule, scratch, family) == 2e-3
        assert peak_lr(schedule, full, family) == pytest.approx(6e-4)
    assert scales_of(ScheduleConfig(), full, "convolutional") == Scales()
    gentle = Arm("warmup", "warmup", True)
    assert peak_lr(ScheduleConfig(), gentle, "convolutional") == pytest.approx(1e-4)
    assert peak_lr(ScheduleConfig(), gentle, "transformer") == pytest.approx(1e-4)  # of 3e-4
    assert scales_of(ScheduleConfig(), Arm("sawtooth", "sawtooth", True), "transformer").decoder == 0.01
