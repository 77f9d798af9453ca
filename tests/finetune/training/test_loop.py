import copy

import numpy as np
import pytest
import torch

from scanfoundry.backbones.registry import build
from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.recipes import Arm
from scanfoundry.finetune.config.study import AugmentationConfig, ScheduleConfig, SelfTrainingConfig, ValidationConfig
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.run_study import prepare
from scanfoundry.finetune.training.loop import train
from scanfoundry.finetune.training.optimisation import preset
from scanfoundry.finetune.training.rates import factor
from scanfoundry.finetune.training.setup import TrainProgress, TrainSetup

CPU = torch.device("cpu")


@pytest.fixture
def made(study, slices, fixed_key):
    # The same cases each time: of some draws 25 steps learn too little.
    config = study("classification", slices)
    settled = prepare(
        config.model_copy(update={"data": config.data.model_copy(update={"key_file": fixed_key("of the tests")})})
    )
    adapter = adapter_for(settled.spec)
    torch.manual_seed(0)
    return adapter, adapter.build(build(settled.spec.backbone)), [adapter.load(c) for c in settled.sides.pool[:12]]


def fit(made, recipe="full", pretrained=False, seconds=None, check=None, validation=None, **schedule):
    adapter, model, samples = made
    settings = ScheduleConfig(**{"steps": 4, "warmup_steps": 0, **schedule})
    told = settings, AugmentationConfig(), ValidationConfig(**(validation or {})), SelfTrainingConfig()
    course = TrainSetup(Arm(recipe, recipe, pretrained), 0, *told, CPU, seconds)
    return train(adapter, model, samples, course, TrainProgress(), check)


def weights(parameters):
    return torch.cat([p.detach().flatten() for p in parameters]).clone()


def test_the_loss_falls_and_the_history_says_so(made):
    history = fit(made, steps=25, lr=1e-3)
    losses = [loss for _, loss in history.loss]
    assert history.steps == 25
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.05


@pytest.mark.parametrize(
    ("recipe", "frozen", "steps", "still"),
    [
        ("frozen", 0, 4, True),
        ("staged", 4, 4, True),
        ("staged", 2, 4, False),
        ("staged", 0, 10, False),
        ("full", 0, 4, False),
    ],
)
def test_a_frozen_encoder_stands_still(made, recipe, frozen, steps, still):
    before, head = weights(made[1].encoder_parameters()), weights(made[1].linear.parameters())
    fit(made, recipe, True, frozen_steps=frozen, steps=steps)
    assert torch.equal(before, weights(made[1].encoder_parameters())) == still
    assert not torch.equal(head, weights(made[1].linear.parameters()))


def test_a_staged_encoder_moves_after_its_fifth_and_not_before(made):
    before = weights(made[1].encoder_parameters())
    seen = []

    def look(model):
        seen.append(torch.equal(before, weights(model.encoder_parameters())))
        return 0.0

    fit(made, "staged", True, check=look, steps=10, validation={"checks": 10})
    assert seen == [True] * 2 + [False] * 8


def test_encoder_rate_is_scaled_in_the_pretrained_arm(made):
    adapter, model, samples = made
    moved = []
    for scale in (1.0, 0.1):
        copied = copy.deepcopy(model)
        before = weights(copied.encoder_parameters())
        fit((adapter, copied, samples), pretrained=True, steps=1, encoder_lr_scale=scale)
        moved.append((weights(copied.encoder_parameters()) - before).norm().item())
    # The head starts at zero, so the first step moves the encoder by weight decay alone: still proportional.
    assert moved[1] == pytest.approx(0.1 * moved[0], rel=0.05)


def test_schedule():
    assert factor(3, 0.1, warmup=10, frozen=5) == 0
    assert factor(5, 0.0, warmup=10, frozen=5) == pytest.approx(0.1)
    assert factor(50, 0.5, warmup=10, frozen=5) == pytest.approx(0.5)
    assert factor(99, 1.0, warmup=10, frozen=0) == pytest.approx(0)


def test_recipe_keeps_what_the_user_gives():
    assert preset(ScheduleConfig(), "transformer").weight_decay == 0.05
    assert preset(ScheduleConfig(), "transformer") != preset(ScheduleConfig(), "convolutional")
    assert preset(ScheduleConfig(lr=0.5, weight_decay=0.0), "convolutional").model_dump() == {
        "optimiser": "adamw", "lr": 0.5, "weight_decay": 0.0
    }  # fmt: skip
    assert preset(ScheduleConfig(optimiser="sgd"), "transformer").optimiser == "sgd"


def test_a_budget_in_seconds_is_kept_whatever_the_steps(made):
    history = fit(made, steps=1, seconds=1.0)
    assert history.steps > 1
    assert 1.0 <= history.seconds < 4


def test_the_weights_of_the_best_look_are_kept_and_patience_ends_it(made):
    values, seen = iter([0.1, 0.5, 0.4, 0.3, 0.9]), []

    def look(model):
        seen.append(weights(model.parameters()))
        return next(values)

    history = fit(made, steps=10, check=look, validation={"checks": 5, "patience": 2})
    assert [value for _, value in history.validation] == [0.1, 0.5, 0.4, 0.3]
    assert history.best_step == history.validation[1][0] == 4
    assert history.steps == 8
    assert torch.equal(weights(made[1].parameters()), seen[1])


def test_the_average_of_the_weights_is_what_is_kept(made):
    adapter, model, samples = made
    plain, averaged, path = copy.deepcopy(model), copy.deepcopy(model), []

    def look(model):
        path.append(weights(model.parameters()))
        return len(path)

    fit((adapter, plain, samples), steps=4, lr=1e-2, check=look, validation={"checks": 4})
    fit((adapter, averaged, samples), steps=4, lr=1e-2, average=0.5)
    expected = path[0]
    for each in path[1:]:
        expected = 0.5 * expected + 0.5 * each
    torch.testing.assert_close(weights(averaged.parameters()), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(expected, path[-1], rtol=1e-5, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_with_a_reason(made):
    made[2][0].image.fill_(float("nan"))
    with pytest.raises(UserError, match="the loss is nan at step"):
        fit(made, steps=20)
