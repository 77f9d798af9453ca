from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import fraction, keyed_hash
from scanfoundry.finetune.cases.cases import Case, CaseList
from scanfoundry.finetune.config.study import SelfTrainingConfig, SplitConfig
from scanfoundry.finetune.study.split import shots, split, trial_cases


@dataclass(frozen=True)
class Named:
    """A source that is never read."""

    name: str

    def read(self):
        raise AssertionError(self.name)


def listed(everyone):
    return CaseList(everyone, None, names={case.key: case.images[0].name for case in everyone})


def cases(n, per_patient=1, classes=0):
    return [
        Case(
            keyed_hash(b"k", "scan", str(i)),
            keyed_hash(b"k", "patient", str(i // per_patient)),
            (Named(f"{i}.png"),),
            i // per_patient % classes if classes else Named(f"{i}.nii"),
        )
        for i in range(n)
    ]


@given(st.integers(200, 300), st.integers(1, 3), st.floats(0.2, 0.6))
@settings(max_examples=20, deadline=None)
def test_every_patient_on_one_side_by_the_rule_of_the_hold_out(n, per_patient, share):
    sides = split(listed(cases(n, per_patient)), SplitConfig(test_fraction=share), [])
    assert len(sides.pool) + len(sides.test) == n
    assert not {c.patient for c in sides.pool} & {c.patient for c in sides.test}
    assert all(fraction(c.patient) < share for c in sides.test)
    assert all(fraction(c.patient) >= share for c in sides.pool)


@given(st.integers(0, 5), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_shots_are_nested_and_by_patient(seed, classes):
    pool = cases(60, per_patient=2, classes=classes)
    subsets = [{c.key for c in shots(pool, k, seed)} for k in (1, 3, 5)] + [{c.key for c in shots(pool, "all", seed)}]
    assert all(small < large for small, large in pairwise(subsets))
    chosen = shots(pool, 3, seed)
    assert len(chosen) == 2 * 3 * max(1, classes)
    for k in range(classes):
        assert sum(c.target == k for c in chosen) == 6


def test_seeds_choose_differently():
    pool = cases(50)
    assert {c.key for c in shots(pool, 5, 0)} != {c.key for c in shots(pool, 5, 1)}


def test_refuses_patients_of_the_pretraining():
    everyone = cases(40)
    seen = [split(listed(everyone), SplitConfig(), []).test[0].patient]
    with pytest.raises(UserError, match=r"1 test patients.*data.holdout=0.2"):
        split(listed(everyone), SplitConfig(), seen)
    allowed = split(listed(everyone), SplitConfig(allow_pretraining_overlap=True), seen)
    assert allowed.overlap == 1
    in_pool = [split(listed(everyone), SplitConfig(), []).pool[0].patient]
    fine = split(listed(everyone), SplitConfig(), [*in_pool, "stranger"])
    assert (fine.overlap, fine.pool_overlap, fine.pretrained_on) == (0, 1, 2)


def test_empty_sides_and_too_many_shots():
    everyone = sorted(cases(20), key=lambda c: fraction(c.patient))
    with pytest.raises(UserError, match="no test case"):
        split(listed(everyone[10:]), SplitConfig(test_fraction=0.05), [])
    with pytest.raises(UserError, match="no training case"):
        split(listed(everyone[:1]), SplitConfig(test_fraction=0.95), [])
    with pytest.raises(UserError, match="only 20 patients"):
        shots(everyone, 21, 0)


@given(st.integers(0, 3), st.integers(1, 5))
@settings(max_examples=20, deadline=None)
def test_self_training_sees_no_label_and_no_patient_who_is_tested_on(seed, k):
    everyone = cases(80, per_patient=2)
    without = [Case(c.key, c.patient, c.images, None) for c in everyone[60:]]
    found = replace(listed(everyone[:60]), unlabelled=without)
    sides = split(found, SplitConfig(test_fraction=0.4), [])
    given_ = trial_cases(sides, k, seed, SelfTrainingConfig(rounds=1))
    tested = {case.patient for case in sides.test}
    assert given_.train == shots(sides.pool, k, seed)
    assert given_.test == sides.test
    assert all(case.target is None for case in given_.unlabelled)
    assert not {case.patient for case in given_.unlabelled} & (tested | {case.patient for case in given_.train})
    assert all(fraction(case.patient) >= 0.4 for case in given_.unlabelled)
    expected = [c.key for c in [*sides.pool, *without] if fraction(c.patient) >= 0.4]
    assert sorted(c.key for c in [*given_.train, *given_.unlabelled]) == sorted(expected)
    fewer = trial_cases(sides, k, seed, SelfTrainingConfig(rounds=1, scans=3)).unlabelled
    assert fewer == given_.unlabelled[:3]
    assert trial_cases(sides, k, seed, SelfTrainingConfig()).unlabelled == []


def test_a_patient_with_a_test_case_lends_no_scan_without_a_label():
    everyone = cases(8, per_patient=2)
    found = replace(listed(everyone[:3] + everyone[4:]), unlabelled=[replace(everyone[3], target=None)])
    found.official = {c.key: "test" if c.patient == everyone[2].patient else "train" for c in found.cases}
    assert split(found, SplitConfig(official=True), []).unlabelled == []
    found.official = {c.key: "test" if c.patient == everyone[0].patient else "train" for c in found.cases}
    assert [c.key for c in split(found, SplitConfig(official=True), []).unlabelled] == [everyone[3].key]
