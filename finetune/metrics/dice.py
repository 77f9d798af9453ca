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
    labelled = (prediction != 0) | (truth != 0)
    predicted, true = prediction[labelled], truth[labelled]
    sizes = [np.bincount(labels, minlength=n_classes + 1) for labels in (predicted, true, true[predicted == true])]
    counts = np.array([size[: n_classes + 1] for size in sizes], float)[:, 1:]
    total = counts[0] + counts[1]
    return np.divide(2 * counts[2], total, out=np.full(n_classes, np.nan), where=total > 0).tolist()


def mean_defined(values: list[float]) -> float:
    """The mean of the values that are not nan; nan where there is none."""
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")
