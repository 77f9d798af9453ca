"""Presets, schedules and parameter groups."""

import math

import pytest
import torch
from torch import nn

from scanfoundry.pretrain.engine.optimiser import (
    PRESETS,
    OptimiserConfig,
    build_optimiser,
    learning_rate,
    set_schedule,
    weight_decay,
)


@pytest.mark.parametrize(("name", "family"), PRESETS)
def test_every_preset_builds_and_steps(name, family):
    config = OptimiserConfig(name=name).filled(family)
    model = nn.Linear(3, 2)
    optimiser = build_optimiser(model, config)
    model(torch.ones(1, 3)).sum().backward()
    before = model.weight.detach().clone()
    set_schedule(optimiser, learning_rate(100, 1000, config), weight_decay(0.1, config))
    optimiser.step()
    assert not torch.equal(before, model.weight)
    assert [len(group["params"]) for group in optimiser.param_groups] == [1, 1]
    assert optimiser.param_groups[1]["weight_decay"] == 0.0


def test_what_was_chosen_stands_and_the_rest_is_the_familys():
    config = OptimiserConfig(name="lamb", lr=0.5, weight_decay=0.3).filled("convolutional")
    assert (config.lr, config.weight_decay, config.final_weight_decay, config.betas) == (0.5, 0.3, None, (0.9, 0.95))
    assert OptimiserConfig(name="lamb").filled("convolutional").final_weight_decay == 0.2
    assert OptimiserConfig(name="sgd").filled("convolutional").momentum == 0.99
    assert OptimiserConfig(name="sgd").filled("transformer").momentum == 0.9
    assert config.filled("transformer") == config


@pytest.mark.parametrize(("name", "setting"), [("sgd", {"betas": (0.9, 0.9)}), ("adamw", {"momentum": 0.9})])
def test_a_setting_that_the_optimiser_does_not_have_is_refused(name, setting):
    with pytest.raises(ValueError, match=f"{name} has no"):
        OptimiserConfig(name=name, **setting).filled("convolutional")


def test_schedules():
    config = OptimiserConfig(lr=1.0, min_lr=0.1, warmup_steps=4, schedule="polynomial").filled("convolutional")
    assert [learning_rate(step, 104, config) for step in (0, 3)] == [0.25, 1.0]
    assert learning_rate(54, 104, config) == pytest.approx(0.1 + 0.9 * 0.5**0.9)
    assert learning_rate(104, 104, config) == pytest.approx(0.1)
    rising = OptimiserConfig(weight_decay=0.04, final_weight_decay=0.2).filled("convolutional")
    assert [weight_decay(share, rising) for share in (0.0, 0.5, 1.0)] == pytest.approx([0.04, 0.12, 0.2])
    assert weight_decay(0.25, rising) == pytest.approx(0.2 - 0.16 * 0.5 * (1 + math.cos(math.pi / 4)))


def test_a_decay_that_falls_to_zero_rises_again():
    model = nn.Linear(3, 2)
    optimiser = build_optimiser(model, OptimiserConfig().filled("convolutional"))
    set_schedule(optimiser, 1.0, 0.0)
    set_schedule(optimiser, 1.0, 0.3)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.3, 0.0]
