"""The teacher's part of the loss against a plain restatement, in float64."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scanfoundry.backbones.distillation import FeatureMatch, normalised_l2
from scanfoundry.backbones.registry import build
from scanfoundry.backbones.resenc import ResEncConfig
from scanfoundry.backbones.stunet import STUNetConfig
from scanfoundry.backbones.vit import ViTConfig
from scanfoundry.finetune.config.distil import DistilConfig
from scanfoundry.finetune.heads.classification import ClassificationModel
from scanfoundry.finetune.heads.segmentation import SegmentationModel
from scanfoundry.finetune.training.distillation import Distillation, Teacher, divergence

CPU = torch.device("cpu")
STUNET = STUNetConfig(size="S", strides=((2, 2, 2), (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)))
RESENC = ResEncConfig(features=(8, 12), blocks=(1, 1), strides=((2, 2, 2),))
VIT = ViTConfig(size="Ti", patch_2d=(8, 8), patch_3d=(4, 8, 8))


def task(loss):
    """A task whose own loss is `loss` of the model's output."""
    return SimpleNamespace(loss=lambda model, images, targets: loss(model(images)))


def first(output):
    return (output[0] if isinstance(output, list) else output).square().mean()


def naive_divergence(wanted, given, heat):
    """T^2 times the mean over rows of sum p log(p / q), by loops over plain floats; wanted: of each member."""
    total, rows = 0.0, given.movedim(1, -1).reshape(-1, given.shape[1]).tolist()
    members = [each.movedim(1, -1).reshape(-1, given.shape[1]).tolist() for each in wanted]

    def softened(z):
        shares = [math.exp(x / heat) for x in z]
        return [share / sum(shares) for share in shares]

    for place, z in enumerate(rows):
        teachers = [softened(each[place]) for each in members]
        p, q = [sum(each) / len(teachers) for each in zip(*teachers, strict=True)], softened(z)
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return heat**2 * total / len(rows)


@pytest.mark.parametrize("heat", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(2, 1, 1, 8, 8), (1, 1, 8, 8, 8)])
def test_logits_as_a_naive_loop(shape, heat):
    torch.manual_seed(0)
    is_2d, images = shape[2] == 1, torch.randn(shape, dtype=torch.float64)
    student = SegmentationModel(build(RESENC), 3, is_2d).double().train()
    members = [SegmentationModel(build(STUNET), 3, is_2d).double().train() for _ in range(2)]
    config = DistilConfig(teacher="x", weight=0.7, temperature=heat)
    distil = Distillation(Teacher(config, members), task(first), student.net.encoder, 0, CPU)
    assert not any(member.training for member in members)
    assert distil.parameters() == []
    loss = distil.loss(student, images, None)
    given = student(images)[0]
    expected = naive_divergence([member(images) for member in members], given, heat)
    assert loss.item() == pytest.approx(first([given]).item() + 0.7 * expected, rel=1e-10)
    loss.backward()
    assert all(p.grad is None for member in members for p in member.parameters())
    assert any(p.grad is not None for p in student.parameters())


def test_of_scans_the_same_and_a_teacher_like_the_student_asks_for_nothing():
    torch.manual_seed(0)
    student, images = ClassificationModel(build(RESENC), 4).double(), torch.randn(3, 1, 1, 8, 8, dtype=torch.float64)
    torch.nn.init.normal_(student.linear.weight)
    config = DistilConfig(teacher="x")
    same = Distillation(Teacher(config, [student]), task(first), student.encoder, 0, CPU)
    assert same.term(student(images), images).item() == pytest.approx(0, abs=1e-14)
    other = ClassificationModel(build(VIT), 4).double()
    torch.nn.init.normal_(other.linear.weight)
    taught = Distillation(Teacher(config, [other]), task(first), student.encoder, 0, CPU)
    expected = naive_divergence([other(images)], student(images), 2.0)
    assert taught.term(student(images), images).item() == pytest.approx(expected, rel=1e-10)


def test_a_class_that_the_teacher_excludes_is_no_nan():
    wanted, logits = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, -0.5]], requires_grad=True)
    loss = divergence(wanted, logits)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))
    assert logits.grad.isfinite().all()


def directions_apart(a, b):
    """By plain floats: |a / |a| - b / |b||^2."""
    a, b = np.asarray(a), np.asarray(b)
    return float(((a / np.sqrt((a**2).sum()) - b / np.sqrt((b**2).sum())) ** 2).sum())


def test_features_are_matched_place_by_place_and_as_a_whole():
    torch.manual_seed(0)
    match = FeatureMatch(5, 7).double()
    given, wanted = torch.randn(2, 5, 2, 3, 4, dtype=torch.float64), torch.randn(2, 7, 2, 3, 4, dtype=torch.float64)
    valid = torch.ones(2, 1, 4, 6, 8, dtype=torch.bool)
    valid[0, ..., 4:] = False  # the last two columns of the first scan's features
    places, whole = match(given, wanted, valid)
    kernel, bias = match.dense.weight[:, :, 0, 0, 0].detach().numpy(), match.dense.bias.detach().numpy()
    for b, *at in np.ndindex(2, 2, 3, 4):
        mine = kernel @ given[(b, slice(None), *at)].numpy() + bias
        expected = directions_apart(mine, wanted[(b, slice(None), *at)].numpy())
        assert places[(b, *at)].item() == pytest.approx(expected, rel=1e-10)
    for b, columns in ((0, 2), (1, 4)):
        mine, other = (x[b, ..., :columns].mean((1, 2, 3)).numpy() for x in (given, wanted))
        mine = match.pooled.weight.detach().numpy() @ mine + match.pooled.bias.detach().numpy()
        assert whole[b].item() == pytest.approx(directions_apart(mine, other), rel=1e-10)


def test_on_another_grid_the_projected_features_are_interpolated():
    match = FeatureMatch(1, 1).double()
    torch.nn.init.ones_(match.dense.weight)
    torch.nn.init.zeros_(match.dense.bias)
    given = torch.tensor([1.0, -3.0], dtype=torch.float64).view(1, 1, 1, 1, 2)
    wanted = torch.ones(1, 1, 1, 1, 4, dtype=torch.float64)
    # Between the middles of two places, at a quarter and three quarters: 1, 0, -2, -3; the direction is the sign.
    found = match(given, wanted)[0].flatten().tolist()
    assert [found[0], *found[2:]] == pytest.approx([0, 4, 4])
    assert normalised_l2(given, 5 * given).max().item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("student", [RESENC, STUNET, VIT])
@pytest.mark.parametrize("segments", [True, False])
def test_one_pass_of_the_student_gives_loss_and_features(student, segments):
    torch.manual_seed(0)
    encoder, teacher = build(student), build(VIT)
    model = SegmentationModel(encoder, 3, True) if segments else ClassificationModel(encoder, 3)
    model.double().train()
    teacher.double()
    passes = []
    config = DistilConfig(teacher="x", what="features", weight=2.0)

    def loss(output):
        passes.append(output)
        return first(output)

    before = torch.get_rng_state()
    distil = Distillation(Teacher(config, [teacher]), task(loss), encoder, 3, CPU)
    assert torch.equal(before, torch.get_rng_state())
    distil._match.double()
    images = torch.randn(2, 1, 1, 16, 16, dtype=torch.float64)
    found = distil.loss(model, images, None)
    assert len(passes) == 1
    places, whole = distil._match(encoder(images)[-1], teacher(images)[-1])
    expected = first(passes[0]) + 2.0 * (places.mean() + whole.mean())
    assert found.item() == pytest.approx(expected.item(), rel=1e-10)
    found.backward()
    assert all(p.grad is not None for p in distil.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert all("encode" not in vars(module) for module in model.modules())  # watched within the step alone
