"""Scores of class probabilities; scikit-learn where it defines the number."""

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, roc_auc_score

NAN = float("nan")


def auroc(labels: npt.NDArray, probabilities: npt.NDArray) -> float:
    """Area under the ROC curve, one class against the rest, macro mean over the classes present (nan: one class).

    labels (N,) integers, probabilities (N, K). With two classes this is the ordinary AUROC of class 1.
    """
    return _one_vs_rest(roc_auc_score, labels, probabilities)


def average_precision(labels: npt.NDArray, probabilities: npt.NDArray) -> float:
    """Average precision (step-wise, not interpolated), class 1 of two, or the macro mean over present classes."""
    return _one_vs_rest(average_precision_score, labels, probabilities)


def accuracy(labels: npt.NDArray, probabilities: npt.NDArray) -> float:
    """Share of cases whose most probable class is the true one; nan without cases."""
    return float((probabilities.argmax(1) == labels).mean()) if len(labels) else NAN


def balanced_accuracy(labels: npt.NDArray, probabilities: npt.NDArray) -> float:
    """Mean recall over the classes that occur among the labels; nan without cases."""
    hit = probabilities.argmax(1) == labels
    recalls = [float(hit[labels == label].mean()) for label in np.unique(labels)]
    return float(np.mean(recalls)) if recalls else NAN


def expected_calibration_error(labels: npt.NDArray, probabilities: npt.NDArray, bins: int = 10) -> float:
    """ECE (Guo et al. 2017, eq. 3): confidence of the top class in `bins` equal bins ((a, b], 0 in the first),
    mean |accuracy - confidence| weighted by the bins' counts; nan without cases."""
    if not len(labels):
        return NAN
    confidence = probabilities.max(1)
    hit = probabilities.argmax(1) == labels
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    gap = np.abs(np.bincount(index, hit, minlength=bins) - np.bincount(index, confidence, minlength=bins))
    return float(gap[counts > 0].sum() / len(labels))


def _one_vs_rest(score: object, labels: npt.NDArray, probabilities: npt.NDArray) -> float:
    present = np.unique(labels)
    if len(present) < 2:
        return NAN
    if probabilities.shape[1] == 2:
        return float(score(labels == 1, probabilities[:, 1]))  # type: ignore[operator]
    return float(np.mean([score(labels == k, probabilities[:, k]) for k in present]))  # type: ignore[operator]
