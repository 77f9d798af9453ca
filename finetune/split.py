"""Who is tested on and who is trained on: by patient, nested over shots, apart from the pre-training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from scanforge.configs.errors import UserError
from scanforge.datasets.identity import fraction
from scanforge.finetune.cases import Case
from scanforge.finetune.config import SplitConfig

Shots = int | str  # a number, or 'all'


@dataclass(frozen=True)
class Split:
    """Cases to train from and to test on; no patient is on both sides."""

    pool: list[Case]
    test: list[Case]
    overlap: int  # test patients that the pre-training has seen (allowed explicitly)
    pool_overlap: int = 0  # patients to train from that it has seen, which is as it should be
    pretrained_on: int = 0  # patients of the pre-training
    comparable: bool = True  # the pre-training hashed its patients with this site's key


def split(cases: Sequence[Case], config: SplitConfig, pretrained_on: Sequence[str]) -> Split:
    """A patient is tested on iff fraction(patient) < config.test_fraction, the rule of `data.holdout`.

    UserError where a side is empty, or a test patient was pre-trained on and that is not allowed.
    """
    test = [case for case in cases if fraction(case.patient) < config.test_fraction]
    pool = [case for case in cases if fraction(case.patient) >= config.test_fraction]
    for side, name, change in ((test, "test", "raise"), (pool, "training", "lower")):
        if not side:
            raise UserError(
                f"split.test_fraction={config.test_fraction} leaves no {name} case of {len(cases)}: "
                f"{change} it or give more patients"
            )
    overlap = len({case.patient for case in test} & set(pretrained_on))
    if overlap and not config.allow_pretraining_overlap:
        raise UserError(
            f"{overlap} test patients were in the pre-training of this checkpoint: pre-train with "
            f"data.holdout={config.test_fraction}, or set split.allow_pretraining_overlap=true (stated in the report)"
        )
    seen = set(pretrained_on)
    return Split(pool, test, overlap, len({case.patient for case in pool} & seen), len(seen))


def shots(pool: Sequence[Case], k: Shots, seed: int) -> list[Case]:
    """The cases of the first k patients in the seed's order ('all': everyone), so that subsets are nested.

    Where the target is a class, the first k patients of each class (a patient counts for the class of its first
    case): k per class. UserError where there are fewer.
    """
    if k == "all":
        return list(pool)
    chosen: set[str] = set()
    for name, patients in _groups(pool).items():
        if len(patients) < int(k):
            of_class = "" if name is None else f" of class {name}"
            raise UserError(f"shots={k} but only {len(patients)} patients{of_class} to train from: lower 'shots'")
        order = np.random.default_rng(seed).permutation(len(patients))
        chosen |= {patients[i] for i in order[: int(k)]}
    return [case for case in pool if case.patient in chosen]


def class_counts(cases: Sequence[Case], classes: Sequence[str]) -> dict[str, int]:
    """How many cases of each class; empty where the target is no class."""
    counts = Counter(classes[case.target] for case in cases if isinstance(case.target, int))
    return dict(sorted(counts.items()))


def _groups(pool: Sequence[Case]) -> dict[int | None, list[str]]:
    first: dict[str, int | None] = {}
    for case in sorted(pool, key=lambda case: case.key):
        first.setdefault(case.patient, case.target if isinstance(case.target, int) else None)
    groups: dict[int | None, list[str]] = {}
    for patient in sorted(first):
        groups.setdefault(first[patient], []).append(patient)
    return groups
