import numpy as np
import pytest

from scanfoundry.finetune.run_study import prepare
from scanfoundry.finetune.study.caveats import caveats
from scanfoundry.finetune.study.trial import TrialResult
from scanfoundry.finetune.training.setup import History


def cell(*curves, arm="full", steps=200, unlabelled=0, relabelled=()):
    histories = [
        History(steps=steps, seconds=1, loss=list(enumerate(curve, 1)), relabelled=[*relabelled]) for curve in curves
    ]
    return TrialResult(
        digest="", arm=arm, shots=2, seed=0, train_cases=[], unlabelled_cases=unlabelled, histories=histories,
        validation=[], temperature=1, postprocess=[], records=[{"score": 1.0}],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("curve", "steps", "is_flat"),
    [
        (np.full(200, 0.693), 200, True),  # of a coin
        (np.linspace(0.70, 0.68, 200), 200, True),
        (np.full(200, 0.693), 99, False),  # nobody expects it to fall so soon
        (np.linspace(0.70, 0.60, 200), 200, False),
        (np.concatenate([np.full(180, 0.693), np.full(20, 0.5)]), 200, False),
        ([], 0, False),  # votes of neighbours
        ([0.7], 200, True),
    ],
)
def test_a_loss_that_does_not_fall_is_told(study, volumes, curve, steps, is_flat):
    config = study("segmentation", volumes)
    sides = prepare(config).sides
    good = np.linspace(1, 0, 200)
    said = caveats(config, sides, [cell(good), cell(good, curve, arm="scratch", steps=steps)], None)
    told = [one for one in said if "hardly fell" in one]
    assert len(told) == is_flat
    assert all(one.startswith("scratch, 2 shots, seed 0: the training loss hardly fell (0.") for one in told)


def test_what_is_always_told_and_what_only_where_it_holds(study, volumes):
    config = study("segmentation", volumes)
    sides = prepare(config).sides
    said = caveats(config, sides, [cell(np.linspace(1, 0, 200))], None)
    assert [one.partition(":")[0] for one in said] == [f"only {len(sides.test)} test patients", "one seed"]
    told = caveats(config, sides, [cell([])], "auroc")
    assert told[-1] == "'auroc' is undefined on these test cases (one class or no finding among them)."


def test_self_training_that_never_began_is_told(study, volumes):
    config = study("segmentation", volumes, self_training={"rounds": 2})
    sides, good = prepare(config).sides, np.linspace(1, 0, 200)
    began, never = cell(good, unlabelled=7, relabelled=[450]), cell(good, arm="scratch", unlabelled=9)

    def said(*cells):
        return [one for one in caveats(config, sides, cells, None) if "self-training" in one]

    late = "scratch, 2 shots, seed 0: self-training never began"
    assert [one[: len(late)] for one in said(never)] == [late]
    assert "self_training.min_steps (400) steps" in said(never)[0]
    both = said(began, never)
    assert both[0].startswith(late)
    assert both[1].startswith("self-training: 7 scans of other patients")
    assert said(began) == ["self-training: 7 scans of other patients than those tested on took part with labels of the "
                           "model's own; nobody's labels of them were trained on."]  # fmt: skip
    assert said(cell(good)) == ["self-training was asked for, but no scan is without a label."]
