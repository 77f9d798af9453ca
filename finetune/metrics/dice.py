"""Overlap of label maps, in plain numpy."""

import numpy as np
import numpy.typing as npt


def dice(prediction: npt.NDArray, truth: npt.NDArray, n_classes: int) -> list[float]:
    """Dice = 2 |P and T| / (|P| + |T|) of each foreground class 1..n_classes, between two integer label maps.

    Empty masks: where truth and prediction are both empty the value is nan (undefined, left out of every mean,
    as nnU-Net does); where exactly one of them is empty it is 0.

    Raises ValueError where the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"shapes differ: {prediction.shape} and {truth.shape}")
    values = []
    for label in range(1, n_classes + 1):
        predicted, true = prediction == label, truth == label
        total = int(predicted.sum()) + int(true.sum())
        both = int(np.logical_and(predicted, true).sum())
        values.append(2.0 * both / total if total else float("nan"))
    return values


def mean_defined(values: list[float]) -> float:
    """The mean of the values that are not nan; nan where there is none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
