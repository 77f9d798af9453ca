"""Who is tested on and who is trained on: by patient, nested over shots, apart from the pre-training."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from scanfoundry.configs.errors import UserError
from scanfoundry.datasets.identity import fraction
from scanfoundry.finetune.cases.cases import Case, CaseList
from scanfoundry.finetune.config.study import SelfTrainingConfig, SplitConfig
from scanfoundry.finetune.formats.predefined_splits import sides_of_file, sides_of_official

Shots = int | float | str  # a number of patients, a share of them, or 'all'


@dataclass(frozen=True)
class TeacherPatients:
    """How many patients of a study its teacher was trained on."""

    test: int  # of those tested on (allowed explicitly)
    pool: int  # of those to train from, which is as it should be
    known: bool  # whether whom it was trained on is known at all


@dataclass(frozen=True)
class Split:
    """Cases to train from and to test on; no patient is on both sides."""

    pool: list[Case]
    test: list[Case]
    overlap: int  # test patients that the pre-training has seen (allowed explicitly)
    pool_overlap: int = 0  # patients to train from that it has seen, which is as it should be
    pretrained_on: int = 0  # patients of the pre-training
    comparable: bool = True  # the pre-training hashed its patients with this site's key
    unused: int = 0  # cases that a split file does not name
    unlabelled: list[Case] = field(default_factory=list)  # scans without a label, of no patient to test on
    teacher: TeacherPatients | None = None  # of distillation


def split(found: CaseList, config: SplitConfig, pretrained_on: Sequence[str]) -> Split:
    """Who is tested on and who is trained on.

    The sides are those that `config.file` or the data set names. Else a patient is tested on if and only if
    fraction(patient) < config.test_fraction, the rule of pre-training's `data.holdout`.

    Args:
        found: the labelled cases.
        config: how to split them.
        pretrained_on: keyed hashes of the patients of the pre-training.

    Raises:
        UserError: a side is empty, a patient is on both, or a test patient was pre-trained on and that is not allowed.
    """
    cases = found.cases
    if config.file is not None:
        pool, test = sides_of_file(found, config.file, config.fold)
    elif config.official:
        pool, test = sides_of_official(found)
    else:
        test = [case for case in cases if fraction(case.patient) < config.test_fraction]
        pool = [case for case in cases if fraction(case.patient) >= config.test_fraction]
    _refuse(pool, test, config, len(cases))
    seen = set(pretrained_on)
    overlap = len({case.patient for case in test} & seen)
    if overlap and not config.allow_pretraining_overlap:
        raise UserError(
            f"{overlap} test patients were in the pre-training of this checkpoint: pre-train with "
            f"data.holdout={config.test_fraction}, or set split.allow_pretraining_overlap=true (stated in the report)"
        )
    unused, known = len(cases) - len(pool) - len(test), len({case.patient for case in pool} & seen)
    by_rule = config.file is None and not config.official
    tested = {case.patient for case in test}
    others = [
        case
        for case in found.unlabelled
        if case.patient not in tested and not (by_rule and fraction(case.patient) < config.test_fraction)
    ]
    return Split(pool, test, overlap, known, len(seen), unused=unused, unlabelled=others)


def _refuse(pool: Sequence[Case], test: Sequence[Case], config: SplitConfig, count: int) -> None:
    for side, name, change in ((test, "test", "raise"), (pool, "training", "lower")):
        if side:
            continue
        if config.file is not None or config.official:
            raise UserError(f"{config.file or 'the official split'} leaves no {name} case of {count}")
        raise UserError(
            f"split.test_fraction={config.test_fraction} leaves no {name} case of {count}: "
            f"{change} it or give more patients"
        )
    both = {case.patient for case in pool} & {case.patient for case in test}
    if both:
        raise UserError(
            f"{len(both)} patients are on both sides of {config.file or 'the official split'}: the numbers would be of "
            "patients that were trained on; split by patient"
        )


def shots(pool: Sequence[Case], k: Shots, seed: int) -> list[Case]:
    """The cases of the first k patients in the seed's order ('all': everyone), so that subsets are nested.

    Where the target is a class, these are the first k patients of each class; a patient counts for the class of its
    first case. A k below 1 is a share of the patients, of each class at least one.

    Raises:
        UserError: there are fewer patients.
    """
    if k == "all":
        return list(pool)
    chosen: set[str] = set()
    for name, patients in _groups(pool).items():
        count = max(1, round(k * len(patients))) if isinstance(k, float) else int(k)
        if len(patients) < count:
            of_class = "" if name is None else f" of class {name}"
            there = f"{len(patients)} patient{'' if len(patients) == 1 else 's'}{of_class}"
            raise UserError(f"shots={k} but only {there} to train from: lower 'shots'")
        order = np.random.default_rng(seed).permutation(len(patients))
        chosen |= {patients[i] for i in order[:count]}
    return [case for case in pool if case.patient in chosen]


@dataclass(frozen=True)
class TrialCases:
    """What one trial of a study trains from and is tested on."""

    train: list[Case]
    unlabelled: list[Case]  # for self-training, without targets
    test: list[Case]


def trial_cases(sides: Split, k: Shots, seed: int, config: SelfTrainingConfig) -> TrialCases:
    """The cases of a trial.

    For self-training these include, in the seed's order, other cases of the training side, whose labels are left out
    here, and scans that have none.
    """
    train = shots(sides.pool, k, seed)
    if not config.rounds:
        return TrialCases(train, [], sides.test)
    taken = {case.patient for case in train}
    others = [replace(case, target=None) for case in sides.pool if case.patient not in taken]
    rest = sorted(others + sides.unlabelled, key=lambda case: case.key)
    order = np.random.default_rng(seed).permutation(len(rest))
    return TrialCases(train, [rest[i] for i in order[: config.scans]], sides.test)


def class_counts(cases: Sequence[Case], classes: Sequence[str]) -> dict[str, int]:
    """How many cases of each class; empty where the target is no class."""
    counts = Counter(classes[case.target] for case in cases if isinstance(case.target, int))
    return dict(sorted(counts.items()))


def folds(pool: Sequence[Case], k: int, seed: int) -> list[tuple[list[Case], list[Case]]]:
    """(train, validation) of each of `k` folds: by patient, classes spread evenly; every case is validated on once.

    A pure function of the set of cases and `seed`. UserError where there are fewer than `k` patients.
    """
    from sklearn.model_selection import GroupKFold, StratifiedGroupKFold

    patients = len({case.patient for case in pool})
    if k < 2 or patients < k:
        raise UserError(f"{k} folds: 2 at least, and as many patients to train from, of whom there are {patients}")
    ordered = sorted(pool, key=lambda case: case.key)
    groups = [case.patient for case in ordered]
    classes = [case.target if isinstance(case.target, int) else 0 for case in ordered]
    kind = StratifiedGroupKFold if len(set(classes)) > 1 and _spread(ordered, k) else GroupKFold
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer than `k` cases is in some folds only
        parts = list(kind(k, shuffle=True, random_state=seed).split(groups, classes, groups))
    chosen = [{ordered[i].key for i in held} for _, held in parts]
    return [([c for c in pool if c.key not in keys], [c for c in pool if c.key in keys]) for keys in chosen]


def validation(cases: Sequence[Case], fraction: float, seed: int) -> tuple[list[Case], list[Case]]:
    """(train, validation): about `fraction` of the patients, of each class where the target is one, set aside.

    At least one patient is on either side; of a class with a single patient none is set aside. UserError where there is
    one patient only, or each class has only one.
    """
    chosen: set[str] = set()
    for patients in _groups(cases).values():
        count = min(max(1, round(fraction * len(patients))), len(patients) - 1)
        chosen |= {patients[i] for i in np.random.default_rng(seed).permutation(len(patients))[:count]}
    if not chosen:
        raise UserError("a validation set needs two patients (of one class) to train from: raise 'shots'")
    train = [case for case in cases if case.patient not in chosen]
    return train, [case for case in cases if case.patient in chosen]


def _spread(cases: Sequence[Case], k: int) -> bool:
    """Whether a class has the `k` cases that stratifying needs."""
    return max(Counter(case.target for case in cases if isinstance(case.target, int)).values()) >= k


def _groups(pool: Sequence[Case]) -> dict[int | None, list[str]]:
    first: dict[str, int | None] = {}
    for case in sorted(pool, key=lambda case: case.key):
        first.setdefault(case.patient, case.target if isinstance(case.target, int) else None)
    groups: dict[int | None, list[str]] = {}
    for patient in sorted(first):
        groups.setdefault(first[patient], []).append(patient)
    return groups
