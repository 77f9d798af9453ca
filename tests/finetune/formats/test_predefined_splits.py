"""Split files, folds and validation sets: nobody is on both sides."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scanfoundry.configs.errors import UserError
from scanfoundry.finetune.config.study import SplitConfig
from scanfoundry.finetune.formats import Case, CaseList
from scanfoundry.finetune.study.split import folds, split, validation


def case(key, patient, target=0.5):
    return Case(f"{key:032x}", f"{patient:032x}", (None,), target)


@pytest.fixture
def listed():
    """Six cases a to f; c and d are of one patient."""
    cases = [case(i, min(i, 2) if i < 4 else i) for i in range(6)]
    return CaseList(cases, None, names={c.key: f"imagesTr/{n}" for c, n in zip(cases, "abcdef", strict=True)})


def named(found, side):
    return "".join(found.names[case.key][-1] for case in side)


def sides(listed, path, content, **others):
    path.write_text(json.dumps(content) if not isinstance(content, str) else content)
    return split(listed, SplitConfig(file=path, **others), [])


def test_by_name(listed, tmp_path):
    found = sides(listed, tmp_path / "s.json", {"train": ["a"], "val": ["b.nii.gz"], "test": ["imagesTr/c", "d"]})
    assert (named(listed, found.pool), named(listed, found.test), found.unused) == ("ab", "cd", 2)


def test_folds_of_nnunet(listed, tmp_path):
    content = [{"train": list("cdef"), "val": list("ab")}, {"train": list("abef"), "val": list("cd")}]
    assert named(listed, sides(listed, tmp_path / "s.json", content, fold=1).test) == "cd"
    with pytest.raises(UserError, match=r"has 2 folds; split.fold=2"):
        sides(listed, tmp_path / "s.json", content, fold=2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": ["a", "c"], "test": ["b", "d"]}, "1 patients are on both sides of .*s.json"),
        ({"train": ["a", "b"], "test": ["b"]}, "'imagesTr/b' is on both sides"),
        ({"train": ["a"], "test": ["x"]}, "names 'x', which is no labelled case"),
        ({"train": ["a"], "test": []}, "leaves no test case"),
        ({"test": ["a"]}, "leaves no training case"),
        ({"train": ["a"], "tset": ["b"]}, "is no split"),
        ({"train": [1], "test": ["b"]}, "is no split"),
        ([{"train": ["a"]}, 3], "leaves no test case"),
        ('{"train": [', "cannot read the split"),
    ],
)
def test_mistakes(listed, tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        sides(listed, tmp_path / "s.json", content)


def test_the_official_split_must_be_there_and_by_patient(listed):
    with pytest.raises(UserError, match="names no test cases"):
        split(listed, SplitConfig(official=True), [])
    listed.official = {c.key: side for c, side in zip(listed.cases, ("train", "val", "train", "test"), strict=False)}
    with pytest.raises(UserError, match="1 patients are on both sides of the official split"):
        split(listed, SplitConfig(official=True), [])


def test_test_patients_of_a_file_must_not_be_pretrained_on(listed, tmp_path):
    (tmp_path / "s.json").write_text(json.dumps({"train": ["a"], "test": ["b"]}))
    with pytest.raises(UserError, match="1 test patients were in the pre-training"):
        split(listed, SplitConfig(file=tmp_path / "s.json"), [listed.cases[1].patient])


cohorts = st.lists(st.integers(0, 12), min_size=6, max_size=60).filter(lambda patients: len(set(patients)) > 4)


@given(cohorts, st.integers(2, 5), st.integers(0, 3), st.sampled_from([0, 2, 3]))
@settings(max_examples=60, deadline=None)
def test_folds_are_by_patient_and_cover_every_case_once(patients, k, seed, classes):
    pool = [case(i, p, p % classes if classes else 0.5) for i, p in enumerate(patients)]
    found = folds(pool, k, seed)
    assert Counter(c.key for _, held in found for c in held) == Counter(c.key for c in pool)
    for train, held in found:
        assert held
        assert train
        assert not {c.patient for c in train} & {c.patient for c in held}
        assert [c for c in pool if c in train or c in held] == pool
    again = folds(pool[::-1], k, seed)
    assert [{c.key for c in held} for _, held in again] == [{c.key for c in held} for _, held in found]


def test_folds_spread_the_classes():
    pool = [case(i, i, int(i % 5 == 0)) for i in range(50)]
    assert [sum(c.target for c in held) for _, held in folds(pool, 5, 0)] == [2] * 5
    with pytest.raises(UserError, match="as many patients to train from, of whom there are 3"):
        folds(pool[:3], 5, 0)


@given(cohorts, st.floats(0.05, 0.9), st.integers(0, 3), st.sampled_from([0, 2]))
@settings(max_examples=60, deadline=None)
def test_a_validation_set_is_by_patient(patients, share, seed, classes):
    pool = [case(i, p, p % classes if classes else 0.5) for i, p in enumerate(patients)]
    train, held = validation(pool, share, seed)
    assert held
    assert train
    assert not {c.patient for c in train} & {c.patient for c in held}
    assert len(train) + len(held) == len(pool)
    if classes:
        assert {c.target for c in train} == {c.target for c in pool}


def test_one_patient_is_no_validation_set():
    with pytest.raises(UserError, match="two patients"):
        validation([case(0, 1), case(1, 1)], 0.2, 0)
