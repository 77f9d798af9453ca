"""The contrast of voxels against loops, and what it pulls together and pushes apart."""

import math

import pytest
import torch

from scanfoundry.pretrain.losses.dense_contrast import label_contrast, voxel_cosines


def restated(first, second, labels, counted, temperature):
    """The loss of one pair by loops over (appearance, voxel)."""
    rows = [(z / z.norm(), label) for z, label, known in zip(first, labels, counted, strict=True) if known]
    rows += [(z / z.norm(), label) for z, label, known in zip(second, labels, counted, strict=True) if known]
    losses = []
    for at, (anchor, label) in enumerate(rows):
        others = [(float(anchor @ z) / temperature, of) for number, (z, of) in enumerate(rows) if number != at]
        log_sum = math.log(sum(math.exp(similarity) for similarity, _ in others))
        positive = [similarity for similarity, of in others if of == label]
        losses.append(sum(log_sum - similarity for similarity in positive) / len(positive))
    return sum(losses) / len(losses) if losses else 0.0


@pytest.fixture
def given():
    first, second = torch.randn(2, 3, 9, 5, dtype=torch.float64)
    labels = torch.tensor([[0, 0, 1, 1, 1, 4, 4, 0, 9], [2] * 9, [0, 1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8)
    counted = torch.ones(3, 9, dtype=torch.bool)
    counted[0, [1, 8]] = False
    return first, second, labels, counted


@pytest.mark.parametrize("temperature", [0.1, 0.7])
def test_it_equals_loops(given, temperature):
    losses = label_contrast(*given, temperature)
    for number, loss in enumerate(losses.tolist()):
        assert loss == pytest.approx(restated(*(each[number] for each in given), temperature), rel=1e-10)


def test_what_is_not_counted_changes_nothing_and_gets_no_gradient(given):
    first, second, labels, counted = given
    first.requires_grad_()
    counted[1] = False  # nothing of the second pair
    loss = label_contrast(first, second, labels, counted, 0.2)
    assert loss[1] == 0
    loss.sum().backward()
    assert first.grad.isfinite().all()
    assert not first.grad[~counted].any()
    assert first.grad[0][counted[0]].any()
    changed = torch.where(counted.unsqueeze(2), first, 3.0)
    assert torch.equal(label_contrast(changed, second, labels, counted, 0.2), loss)


def test_cosines_are_of_the_same_voxels_and_of_other_labels(given):
    first, second, labels, counted = given
    same, other = voxel_cosines(*given)
    for pair in range(3):
        ones, others = [], []
        for i in range(9):
            for j in range(9):
                if counted[pair, i] and counted[pair, j]:
                    cosine = torch.cosine_similarity(first[pair, i], second[pair, j], dim=0).item()
                    if i == j:
                        ones.append(cosine)
                    if labels[pair, i] != labels[pair, j]:
                        others.append(cosine)
        assert same[pair].item() == pytest.approx(sum(ones) / len(ones), rel=1e-10)
        if others:
            assert other[pair].item() == pytest.approx(sum(others) / len(others), rel=1e-10)
    assert other[1].isnan()  # it has one label


def test_half_precision_is_widened():
    first = torch.randn(1, 4, 8)
    labels, counted = torch.tensor([[0, 0, 1, 1]]), torch.ones(1, 4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        loss = label_contrast(first.bfloat16(), first.bfloat16(), labels, counted, 0.1)
    wide = first.bfloat16().float()
    assert loss.dtype == torch.float32
    assert torch.equal(loss, label_contrast(wide, wide, labels, counted, 0.1))
