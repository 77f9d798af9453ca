from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from scanfoundry.backbones.registry import build
from scanfoundry.finetune.config.recipes import Arm
from scanfoundry.finetune.config.study import AugmentationConfig, ScheduleConfig, SelfTrainingConfig, ValidationConfig
from scanfoundry.finetune.model_file import adapter_for
from scanfoundry.finetune.run_study import prepare
from scanfoundry.finetune.sample import Sample
from scanfoundry.finetune.training.batches import Batches
from scanfoundry.finetune.training.loop import train
from scanfoundry.finetune.training.self_training import SelfTraining
from scanfoundry.finetune.training.setup import TrainProgress, TrainSetup

CPU = torch.device("cpu")


def named(name):
    return Sample(torch.full((1, 1, 1, 1), float(name)), 0.0, (1, 1, 1), (1, 1, 1), "", None, None)


def drawn(batches, steps):
    """Names of the samples of each step."""
    return [batches.take(step)[0].flatten().int().tolist() for step in steps]


@pytest.fixture
def batches():
    """Of 10 labelled samples 0..9, eight in a batch, which come as they are."""
    adapter = SimpleNamespace(
        spec=SimpleNamespace(plan=SimpleNamespace(batch=8)),
        batch=lambda chosen, rng, config, fore: (torch.cat([s.image for s in chosen]), None),
    )
    with Batches(adapter, [named(i) for i in range(10)], 3, AugmentationConfig(), 0.5) as made:
        yield made


def test_rounds_come_evenly_after_the_start_and_never_at_the_end():
    rounds = SelfTraining(SelfTrainingConfig(rounds=3, start=0.4, min_steps=0), SimpleNamespace(), [named(0)], CPU)
    steps = []
    for step in range(1, 101):
        if rounds.due(step, step / 100):
            rounds._scans = []
            rounds.label(torch.nn.Identity(), step)
            steps.append(step)
    assert steps == rounds.steps == [40, 60, 80]


@pytest.mark.parametrize(
    ("steps", "expected"), [(600, [400, 500]), (1000, [400, 700]), (4000, [1000, 2500]), (400, [])]
)
def test_a_network_that_knows_little_labels_nothing(steps, expected):
    """600 steps on 5 hippocampi: 0.821 when labels came after 150, 0.833 after 400, 0.832 without any."""
    adapter = SimpleNamespace(relabelled=lambda *_: None)
    rounds = SelfTraining(SelfTrainingConfig(rounds=2), adapter, [named(0)], CPU)
    for step in range(1, steps + 1):
        if rounds.due(step, step / steps):
            rounds.label(torch.nn.Identity(), step)
    assert rounds.steps == expected


def test_without_scans_there_is_no_round():
    assert not SelfTraining(SelfTrainingConfig(rounds=3), SimpleNamespace(), [], CPU).due(900, 0.9)


@pytest.mark.parametrize("half", [False, True])
def test_scans_are_labelled_in_the_precision_of_the_training(half):
    seen = []
    adapter = SimpleNamespace(relabelled=lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
    SelfTraining(SelfTrainingConfig(rounds=1), adapter, [named(0)], CPU, half).label(torch.nn.Identity(), 1)
    assert seen == [half]


def test_every_labelled_sample_comes_once_in_a_round(batches):
    everything = np.concatenate(drawn(batches, range(5)))
    assert sorted(everything.tolist()) == sorted([*range(10)] * 4)


def test_others_take_their_share_from_the_next_step_on_and_batches_are_of_seed_and_step(batches):
    before = drawn(batches, range(3))
    batches.mix([named(i) for i in range(20, 50)], 0.25)
    after = drawn(batches, range(3, 203))
    assert not any(name >= 20 for one in before for name in one)
    share = np.mean([name >= 20 for one in after for name in one])
    assert 0.2 < share < 0.3
    assert set(np.concatenate(after)) == {*range(10), *range(20, 50)}
    assert drawn(batches, [150]) == [after[147]]
    batches.mix([named(60)], 0.99)
    assert 60 in drawn(batches, [203])[0]


@pytest.fixture
def made(study, volumes):
    settled = prepare(study("segmentation", volumes, plan={"patch": [16, 16, 16], "batch": 2}))
    adapter = adapter_for(settled.spec)
    pool = settled.sides.pool
    return adapter, [adapter.load(case) for case in pool[:2]], [adapter.read(case)[1] for case in pool[2:5]]


def trained(made, monkeypatch, **told):
    adapter, samples, scans = made
    torch.manual_seed(0)
    model, seen = adapter.build(build(adapter.spec.backbone)), []
    plain = type(adapter).batch

    def watched(self, chosen, *others):
        seen.append([(id(one.image), one.target.copy()) for one in chosen])
        return plain(self, chosen, *others)

    monkeypatch.setattr(type(adapter), "batch", watched)
    settings = ScheduleConfig(steps=8, warmup_steps=0, average=0.5, precision="float32")
    how = settings, AugmentationConfig(), ValidationConfig(), SelfTrainingConfig(min_steps=0, **told)
    history = train(
        adapter, model, samples, TrainSetup(Arm("s", "full", False), 0, *how, CPU), TrainProgress(), None, scans
    )
    monkeypatch.undo()
    return history, model.eval(), seen


def test_scans_are_learnt_with_the_labels_of_the_model_and_nothing_else(made, monkeypatch):
    adapter, samples, scans = made
    labelled = []
    plain = type(adapter).relabelled

    def watched(self, members, sample, device):
        assert not any(member.training for member in members)
        labelled.append(plain(self, members, sample, device))
        return labelled[-1]

    with monkeypatch.context() as patch:
        patch.setattr(type(adapter), "relabelled", watched)
        history, _, seen = trained(made, patch, rounds=2, start=0.5, share=0.9)
    assert history.relabelled == [4, 6]
    assert len(labelled) == 2 * len(scans)
    assert all(scan.truth is None and scan.target is None for scan in scans)
    known = {id(sample.image) for sample in samples}
    # The batch that was begun before each round is drawn again: 0 1 2 3 4 | 4 5 6 | 6 7.
    assert {image for one in seen[:5] for image, _ in one} == known
    rounds = (seen[5:8], labelled[: len(scans)]), (seen[8:10], labelled[len(scans) :])
    for batches, turn in rounds:
        others = [each for one in batches for each in one if each[0] not in known]
        assert others
        for image, target in others:
            of_scan = next(each for each in turn if id(each.image) == image)
            assert np.array_equal(of_scan.target, target)


def test_the_same_training_gives_the_same_weights_and_another_than_without(made, monkeypatch):
    told = {"rounds": 2, "start": 0.3, "share": 0.5}
    first, second, plain = (trained(made, monkeypatch, **each)[1].state_dict() for each in (told, told, {}))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], plain[name]) for name in first)


def test_labels_of_the_model_are_its_prediction_at_the_plans_grid(made):
    adapter, _, scans = made
    torch.manual_seed(0)
    model = adapter.build(build(adapter.spec.backbone)).eval()
    found = adapter.relabelled([model], scans[0], CPU)
    assert found.target.shape == tuple(scans[0].image.shape[1:])
    assert found.truth is None
    if tuple(scans[0].shape) == found.target.shape:
        assert np.array_equal(found.target, adapter.segment([model], scans[0], CPU).labels)


def test_other_tasks_refuse_it(study, slices):
    with pytest.raises(ValidationError, match="self_training is for segmentation"):
        study("classification", slices, self_training={"rounds": 2})
