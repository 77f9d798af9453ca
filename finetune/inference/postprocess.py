"""Removal of components from label maps, where the held-back cases say that it helps (Isensee et al. 2021)."""

from collections.abc import Sequence

import numpy as np
import scipy.ndimage

from scanfoundry.finetune.cases.volumes import Labels
from scanfoundry.finetune.config.postprocess import ClassRule
from scanfoundry.finetune.metrics.dice import dice, mean_defined
from scanfoundry.finetune.sample import HeldBackCase

SHARES = (0.02, 0.05, 0.1, 0.25)  # of the median size of a class: candidates for the least size of a component
GAIN = 1e-4  # less Dice than this is no help


def apply(labels: Labels, rules: Sequence[ClassRule], voxel_mm3: float) -> Labels:
    """A label map without the components that rules remove; they become background.

    Components touch by faces, edges or corners.

    Args:
        labels: (D, H, W).
        rules: of the classes 1..n.
        voxel_mm3: volume of a voxel.
    """
    cleaned = labels
    for value, rule in enumerate(rules, start=1):
        if not (rule.largest or rule.min_mm3 > 0):
            continue
        components, n = scipy.ndimage.label(labels == value, structure=np.ones((3, 3, 3)))
        sizes = np.bincount(components.ravel(), minlength=n + 1)
        kept = sizes * voxel_mm3 >= rule.min_mm3
        if rule.largest and n:
            kept &= np.arange(n + 1) == 1 + int(sizes[1:].argmax())
        kept[0] = True
        if not kept.all():
            cleaned = cleaned.copy() if cleaned is labels else cleaned
            cleaned[~kept[components]] = 0
    return cleaned


def choose(cases: Sequence[HeldBackCase], n_classes: int) -> list[ClassRule]:
    """For each class the rule of the highest mean Dice over the held-back cases; none where none helps.

    Args:
        cases: by models that never saw them.
        n_classes: without the background.
    """
    return [_choose(cases, value) for value in range(1, n_classes + 1)]


def _choose(cases: Sequence[HeldBackCase], value: int) -> ClassRule:
    binary = [HeldBackCase(c.prediction == value, c.truth == value, c.voxel_mm3) for c in cases]
    sizes = [float(c.truth.sum()) * c.voxel_mm3 for c in binary if c.truth.any()]
    if not sizes:
        return ClassRule()
    best, rule = _score(binary, ClassRule()), ClassRule()
    typical = float(np.median(sizes))
    candidates = [ClassRule(largest=True), *(ClassRule(min_mm3=share * typical) for share in SHARES)]
    for candidate in candidates:
        score = _score(binary, candidate)
        if score > best + GAIN:
            best, rule = score, candidate
    return rule


def _score(cases: Sequence[HeldBackCase], rule: ClassRule) -> float:
    """Mean Dice of one class after the rule; a case without truth or prediction counts as right."""
    values = []
    for case in cases:
        cleaned = apply(case.prediction.astype(np.uint8), [rule], case.voxel_mm3)
        value = dice(cleaned, case.truth.astype(np.uint8), 1)[0]
        values.append(1.0 if np.isnan(value) else value)
    return mean_defined(values)
