import math

import numpy as np
import pytest
import torch

from scanfoundry.finetune.metrics.dice import dice, mean_defined


def test_equals_monai_on_random_label_maps():
    from monai.metrics import compute_dice

    rng = np.random.default_rng(0)
    for _ in range(10):
        truth, prediction = rng.integers(0, 4, (2, 5, 6, 7))
        one_hot = [
            torch.nn.functional.one_hot(torch.from_numpy(x), 4).movedim(-1, 0)[None] for x in (prediction, truth)
        ]
        expected = compute_dice(*one_hot, include_background=False)[0].tolist()
        assert dice(prediction, truth, 3) == pytest.approx(expected)


def test_empty_masks():
    truth = np.array([0, 0, 2])
    prediction = np.array([0, 1, 0])
    both_empty, only_predicted, only_true = np.zeros(3, int), prediction, truth
    assert math.isnan(dice(both_empty, both_empty, 1)[0])
    assert dice(only_predicted, both_empty, 1) == [0.0]
    values = dice(prediction, only_true, 3)
    assert values[:2] == [0.0, 0.0]
    assert math.isnan(values[2])


def test_mean_leaves_the_undefined_out():
    assert mean_defined([0.5, float("nan"), 1.0]) == 0.75
    assert math.isnan(mean_defined([float("nan")]))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="shapes differ"):
        dice(np.zeros((2, 3)), np.zeros((3, 2)), 1)
