import copy

import numpy as np
import pytest
import torch

from scanforge.backbones.registry import build
from scanforge.configs.errors import UserError
from scanforge.finetune.config import AugmentationConfig, ScheduleConfig
from scanforge.finetune.modelfile import adapter_for
from scanforge.finetune.running import prepare
from scanforge.finetune.training import Progress, factor, recipe, train

CPU = torch.device("cpu")


@pytest.fixture
def made(study, slices):
    settled = prepare(study("classification", slices))
    adapter = adapter_for(settled.spec)
    torch.manual_seed(0)
    return adapter, adapter.build(build(settled.spec.backbone)), [adapter.load(c) for c in settled.sides.pool[:12]]


def fit(made, pretrained=False, **schedule):
    adapter, model, samples = made
    settings = ScheduleConfig(**{"steps": 4, "warmup_steps": 0, **schedule})
    return train(adapter, model, samples, settings, AugmentationConfig(), 0, pretrained, CPU, Progress())


def weights(parameters):
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


def test_the_loss_falls_and_the_history_says_so(made):
    history = fit(made, steps=25, lr=1e-3)
    losses = [loss for _, loss in history.loss]
    assert history.steps == 25
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


@pytest.mark.parametrize(("pretrained", "frozen", "still"), [(True, 4, True), (True, 2, False), (False, 4, False)])
def test_a_frozen_encoder_stands_still_and_only_in_the_pretrained_arm(made, pretrained, frozen, still):
    before, head = weights(made[1].encoder_parameters()), weights(made[1].linear.parameters())
    fit(made, pretrained, frozen_steps=frozen)
    assert torch.equal(before, weights(made[1].encoder_parameters())) == still
    assert not torch.equal(head, weights(made[1].linear.parameters()))


def test_encoder_rate_is_scaled_in_the_pretrained_arm(made):
    adapter, model, samples = made
    moved = []
    for scale in (1.0, 0.1):
        copied = copy.deepcopy(model)
        before = weights(copied.encoder_parameters())
        fit((adapter, copied, samples), True, steps=1, encoder_lr_scale=scale)
        moved.append((weights(copied.encoder_parameters()) - before).norm().item())
    # The head starts at zero, so the first step moves the encoder by weight decay alone: still proportional.
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=0.05)


def test_schedule():
    assert factor(3, 0.1, warmup=10, frozen=5) == 0
    assert factor(5, 0.0, warmup=10, frozen=5) == pytest.approx(0.1)
    assert factor(50, 0.5, warmup=10, frozen=5) == pytest.approx(0.5)
    assert factor(99, 1.0, warmup=10, frozen=0) == pytest.approx(0)


def test_recipe_keeps_what_the_user_gives():
    assert recipe(ScheduleConfig(), "vit").weight_decay == 0.05
    assert recipe(ScheduleConfig(), "primus") == recipe(ScheduleConfig(), "vit") != recipe(ScheduleConfig(), "resenc")
    assert recipe(ScheduleConfig(lr=0.5, weight_decay=0.0), "stunet").model_dump() == {
        "optimiser": "adamw", "lr": 0.5, "weight_decay": 0.0
    }  # fmt: skip
    assert recipe(ScheduleConfig(optimiser="sgd"), "vit").optimiser == "sgd"


def test_minutes_end_the_training_early(made):
    assert fit(made, steps=10_000, minutes=1e-4).steps < 10


def test_a_loss_that_is_not_finite_stops_with_a_reason(made):
    made[2][0].image.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss is nan at step"):
        fit(made, steps=20)
