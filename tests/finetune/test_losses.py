import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.loss import LossConfig
from scanfoundry.finetune.config.tasks.classification import ClassificationTask
from scanfoundry.finetune.config.tasks.detection import DetectionTask
from scanfoundry.finetune.config.tasks.regression import RegressionTask
from scanfoundry.finetune.config.tasks.segmentation import SegmentationTask
from scanfoundry.finetune.losses import (
    class_loss,
    class_weights,
    deep_supervision,
    dice_ce,
    dual_focal,
    focal,
    smooth_l1,
    soft_dice,
)

WEIGHT = torch.tensor([0.2, 1.5, 1.3], dtype=torch.float64)


def drawn(shape=(2, 3, 2, 3, 4), seed=0):
    torch.manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64) * 2, torch.randint(0, shape[1], (shape[0], *shape[2:]))


def voxels(logits, labels):
    """(probabilities, label) of every voxel, as plain floats."""
    for b, *place in np.ndindex(*labels.shape):
        z = [float(logits[(b, k, *place)]) for k in range(logits.shape[1])]
        total = sum(math.exp(x) for x in z)
        yield [math.exp(x) / total for x in z], int(labels[(b, *place)])


def naive(logits, labels, factor, weight=None):
    """Sum of w factor(p, y) (-log p_y) over sum of w."""
    w = [1.0] * logits.shape[1] if weight is None else weight.tolist()
    rows = list(voxels(logits, labels))
    return sum(w[y] * factor(p, y) * -math.log(p[y]) for p, y in rows) / sum(w[y] for _, y in rows)


def runner_up(p, y):
    return max((q for q in p if q < p[y]), default=0.0)


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize("shape", [(2, 3, 2, 3, 4), (5, 3)])
def test_each_term_as_a_naive_loop(weight, shape):
    logits, labels = drawn(shape)
    for gamma in (0.0, 0.5, 2.0):
        expected = naive(logits, labels, lambda p, y, g=gamma: (1 - p[y]) ** g, weight)
        assert focal(logits, labels, gamma, weight).item() == pytest.approx(expected, rel=1e-12)
        expected = naive(logits, labels, lambda p, y, g=gamma: (1 - p[y] + runner_up(p, y)) ** g, weight)
        assert dual_focal(logits, labels, gamma, weight).item() == pytest.approx(expected, rel=1e-12)
    plain = class_loss(logits, labels, LossConfig(), weight).item()
    assert plain == pytest.approx(naive(logits, labels, lambda p, y: 1.0, weight), rel=1e-12)
    assert focal(logits, labels, 0.0, weight).item() == pytest.approx(plain, rel=1e-12)


def test_label_smoothing_as_a_naive_loop():
    logits, labels = drawn((6, 3))
    smooth = 0.3
    expected = np.mean(
        [
            -sum(((1 - smooth) * (k == y) + smooth / 3) * math.log(p[k]) for k in range(3))
            for p, y in voxels(logits, labels)
        ]
    )
    assert class_loss(logits, labels, LossConfig(label_smoothing=smooth)).item() == pytest.approx(expected, rel=1e-12)


def test_soft_dice_as_a_naive_loop():
    logits, labels = drawn()
    values = []
    rows = list(voxels(logits, labels))
    for k in (1, 2):
        both = sum(p[k] for p, y in rows if y == k)
        total = sum(p[k] for p, _ in rows) + sum(y == k for _, y in rows)
        values.append((2 * both + 1e-5) / (total + 1e-5))
    assert soft_dice(logits, labels).item() == pytest.approx(1 - np.mean(values), rel=1e-12)


def test_soft_dice_over_the_batch_as_monai():
    from monai.losses import DiceLoss

    logits, labels = drawn()
    reference = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    assert soft_dice(logits, labels).item() == pytest.approx(reference(logits, labels[:, None]).item(), abs=1e-5)


def test_smooth_l1_as_a_naive_loop():
    predicted, target = torch.tensor([0.1, -2.0, 1.0, 0.5]).double(), torch.tensor([0.0, 1.0, 1.0, 0.2]).double()
    for beta in (0.25, 1.0):
        errors = [abs(float(a - b)) for a, b in zip(predicted, target, strict=True)]
        expected = np.mean([e * e / 2 / beta if e < beta else e - beta / 2 for e in errors])
        found = smooth_l1(predicted, target, LossConfig(smooth_l1_beta=beta))
        assert found.item() == pytest.approx(expected, rel=1e-12)


CONFIGS = [
    LossConfig(),
    LossConfig(term="focal"),
    LossConfig(term="focal", gamma=0.5),
    LossConfig(term="dual_focal"),
    LossConfig(label_smoothing=0.2, dice=0.5),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("weight", [None, WEIGHT])
def test_gradients(config, weight):
    logits, labels = drawn((2, 3, 1, 2, 2), seed=3)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: dice_ce(z, labels, config, weight), (logits,))
    flat, classes = drawn((4, 3), seed=4)
    assert torch.autograd.gradcheck(lambda z: class_loss(z, classes, config, weight), (flat.requires_grad_(),))


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_a_sure_network_has_finite_losses_and_slopes(config):
    labels = torch.tensor([[[[0, 1, 2]]]])
    for scale in (1e4, -1e4):
        sure = (torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float() * scale).requires_grad_()
        loss = dice_ce(sure, labels, config)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(sure.grad).all()


def test_half_precision_is_computed_in_float32():
    logits, labels = drawn((2, 3, 2, 3, 4))
    half = logits.bfloat16()
    for config in CONFIGS:
        assert dice_ce(half, labels, config).dtype == torch.float32
        assert torch.equal(dice_ce(half, labels, config), dice_ce(half.float(), labels, config))


def test_deep_supervision_weighs_resolutions_and_passes_the_options_on():
    outputs = [drawn((1, 3, 4, 4, 4), 1)[0], drawn((1, 3, 2, 2, 2), 2)[0], drawn((1, 3, 1, 1, 1), 3)[0]]
    labels = torch.randint(0, 3, (1, 4, 4, 4))
    config = LossConfig(term="focal", dice=0.3)
    coarse = labels[:, 1::2, 1::2, 1::2]  # 'nearest-exact' takes the voxel at (2 i + 1) / 2
    expected = (2 * dice_ce(outputs[0], labels, config, WEIGHT) + dice_ce(outputs[1], coarse, config, WEIGHT)) / 3
    assert deep_supervision(outputs, labels, config, WEIGHT).item() == pytest.approx(expected.item())
    only = deep_supervision(outputs[:1], labels, config, WEIGHT)
    assert only.item() == pytest.approx(dice_ce(outputs[0], labels, config, WEIGHT).item())


def test_weights_of_classes():
    counts = [90, 10, 0]
    assert class_weights(counts, "none") is None
    inverse = class_weights(counts, "inverse")
    assert inverse == pytest.approx([0.2, 1.8, 1.0])  # mean 1 over the classes that occur
    assert class_weights(counts, "inverse_sqrt") == pytest.approx([0.5, 1.5, 1.0])
    naive_effective = np.array([(1 - 0.999) / (1 - 0.999**n) for n in counts[:2]])
    expected = [*(naive_effective / naive_effective.mean()), 1.0]
    assert class_weights(counts, "effective") == pytest.approx(expected)
    assert class_weights([7, 7], "inverse") == pytest.approx([1, 1])
    assert class_weights(counts, [1.0, 2.0, 3.0]) == [1.0, 2.0, 3.0]
    with pytest.raises(UserError, match="2 values, there are 3 classes"):
        class_weights(counts, [1.0, 2.0])


def test_options_that_a_task_does_not_read_are_refused():
    DetectionTask().check_loss(LossConfig())
    SegmentationTask().check_loss(LossConfig(term="focal", dice=0.5, class_weights="inverse"))
    with pytest.raises(UserError, match=r"loss\.dice has no meaning for classification"):
        ClassificationTask().check_loss(LossConfig(dice=0.5))
    with pytest.raises(UserError, match="term has no meaning for detection"):
        DetectionTask().check_loss(LossConfig(term="focal"))
    with pytest.raises(UserError, match="inverse_sqrt"):
        SegmentationTask().check_loss(LossConfig(class_weights="effective"))
    # A spec that was written and read again sets every option, to what it was.
    RegressionTask().check_loss(LossConfig.model_validate(LossConfig().model_dump()))


@pytest.mark.parametrize(
    "options", [{"gamma": 2.0}, {"term": "focal", "label_smoothing": 0.1}, {"class_weights": [1.0, 0.0]}, {"typo": 1}]
)
def test_options_that_make_no_sense_are_refused(options):
    with pytest.raises(ValidationError):
        LossConfig.model_validate(options)


@pytest.mark.parametrize("term", ["cross_entropy", "focal", "dual_focal"])
def test_ignored_voxels_are_in_no_loss(term):
    """The loss of the others alone, whatever the network says of them, and no gradient there."""
    logits, labels = drawn()
    ignored = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.4
    labels[ignored] = 255
    config = LossConfig(term=term)
    logits.requires_grad_()
    loss = dice_ce(logits, labels, config, WEIGHT, 255)
    loss.backward()
    assert (logits.grad.movedim(1, -1)[ignored] == 0).all()
    assert (logits.grad.movedim(1, -1)[~ignored] != 0).all()
    other = logits.detach().movedim(1, -1).clone()
    other[ignored] = 50 * torch.randn_like(other[ignored])
    assert dice_ce(other.movedim(-1, 1), labels, config, WEIGHT, 255).item() == pytest.approx(loss.item(), rel=1e-12)
    known = logits.detach().movedim(1, -1)[~ignored]
    plain = class_loss(known, labels[~ignored], config, WEIGHT)
    probabilities, truth = known.softmax(1), torch.nn.functional.one_hot(labels[~ignored], 3)
    both, total = (probabilities * truth).sum(0)[1:], (probabilities + truth).sum(0)[1:]
    overlap = 1 - ((2 * both + 1e-5) / (total + 1e-5)).mean()
    assert loss.item() == pytest.approx((plain + overlap).item(), rel=1e-12)


def test_a_patch_that_nobody_looked_at_teaches_nothing():
    logits, labels = drawn()
    logits.requires_grad_()
    loss = deep_supervision([logits, logits[..., ::2]], labels * 0 + 255, LossConfig(dice=0.0), None, 255)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()
    assert torch.isfinite(deep_supervision([logits], labels * 0 + 255, LossConfig(), WEIGHT, 255))


def test_without_an_ignored_voxel_nothing_changes():
    logits, labels = drawn()
    outputs = [logits, logits[..., ::2], logits[..., :1]]
    assert deep_supervision(outputs, labels, LossConfig(), WEIGHT, 255).item() == pytest.approx(
        deep_supervision(outputs, labels, LossConfig(), WEIGHT).item(), rel=1e-12
    )


@pytest.mark.parametrize("weight", [None, WEIGHT])
@pytest.mark.parametrize(
    "config",
    [LossConfig(), LossConfig(label_smoothing=0.2), LossConfig(term="focal"), LossConfig(term="dual_focal", gamma=1.5)],
)
def test_shares_of_classes(config, weight):
    logits, labels = drawn((5, 3))
    sure = torch.nn.functional.one_hot(labels, 3).double()
    assert class_loss(logits, sure, config, weight).item() == pytest.approx(
        class_loss(logits, labels, config, weight).item(), rel=1e-12
    )
    torch.manual_seed(1)
    shares = torch.rand(5, 3, dtype=torch.float64).softmax(1)
    w, eps = ([1.0] * 3 if weight is None else weight.tolist()), config.label_smoothing
    gamma = {"cross_entropy": 0, "focal": 2, "dual_focal": 1.5}[config.term]
    above = below = 0.0
    for z, share in zip(logits.tolist(), shares.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, z)) for x in z]
        for k in range(3):
            rest = 1 - p[k] + (runner_up(p, k) if config.term == "dual_focal" else 0)
            above += w[k] * ((1 - eps) * share[k] + eps / 3) * rest**gamma * -math.log(p[k])
            below += w[k] * share[k]
    assert class_loss(logits, shares, config, weight).item() == pytest.approx(above / below, rel=1e-12)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: class_loss(z, shares, config, weight), (logits,))
