"""Classes from pooled features: nearest neighbours and logistic regression.

scikit-learn is imported where it is used: it takes a second, and a process of pre-training without probes needs none.
"""

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

STRENGTHS = tuple(10.0**power for power in range(-5, 3))  # C of the logistic regression, the smoothest first
FOLDS, ITERATIONS = 3, 200


def nearest(
    train: NDArray, labels: NDArray, test: NDArray, classes: int, neighbours: int, temperature: float
) -> NDArray[np.float64]:
    """Classify test rows by the votes of the training rows most similar to them.

    A vote weighs exp(cosine / temperature) (Wu et al. 2018, arXiv 1805.01978, section 3.4).

    Args:
        train: features (N, F) of the training scans.
        labels: their classes (N,).
        test: features (M, F).
        classes: how many there are.
        neighbours: how many training rows vote.
        temperature: of the weights.

    Returns:
        Shares of the votes (M, classes), which sum to 1.
    """
    # `finetune.heads.probes.NeighbourProbe` is the same formula as a torch module, which is saved, exported to ONNX
    # and runs in float32 on any device. Here it is float64 with a stable order among equal neighbours, whatever the
    # device and the number of ranks: one in place of both would change the numbers of the other.
    rows, queries = (_unit(each.astype(np.float64)) for each in (train, test))
    cosine = queries @ rows.T
    closest = np.argsort(-cosine, axis=1, kind="stable")[:, :neighbours]
    weights = np.exp((np.take_along_axis(cosine, closest, 1) - 1) / temperature)  # minus 1: no overflow, same shares
    votes = np.zeros((len(test), classes))
    for label in range(classes):
        votes[:, label] = np.where(labels[closest] == label, weights, 0).sum(1)
    return votes / np.maximum(votes.sum(1, keepdims=True), np.finfo(np.float64).tiny)


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def logistic(train: NDArray, labels: NDArray, patients: Sequence[str], test: NDArray) -> NDArray[np.float64]:
    """Classify test rows by multinomial logistic regression on standardised features.

    Classes weigh the same. C is the one of least log-loss over folds of the training patients.

    Args:
        train: features (N, F) of the training scans.
        labels: their classes (N,).
        patients: whose scan each is (N,).
        test: features (M, F).

    Returns:
        Probabilities (M, classes).
    """
    strength = _strength(train, labels, np.array(patients))
    return np.asarray(_fitted(strength, train, labels).predict_proba(test))


def fit_logistic(train: NDArray, labels: NDArray, patients: Sequence[str]) -> tuple[NDArray, NDArray]:
    """The regression of `logistic` as one layer on plain features: weights (K, F) and bias (K,) of its logits."""
    fitted = _fitted(_strength(train, labels, np.array(patients)), train, labels)
    scaler, regression = fitted[0], fitted[1]
    weights = regression.coef_ / scaler.scale_
    bias = regression.intercept_ - weights @ scaler.mean_
    if len(weights) == 1:  # two classes share one row: softmax over (0, z) is its sigmoid
        weights, bias = np.concatenate((0 * weights, weights)), np.concatenate((0 * bias, bias))
    return weights, bias


def _strength(train: NDArray, labels: NDArray, patients: NDArray) -> float:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = min(FOLDS, len(np.unique(patients)), int(np.bincount(labels).max()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with fewer scans than folds
        parts = list(StratifiedGroupKFold(folds).split(train, labels, patients)) if folds > 1 else []
    usable = [(fit, held) for fit, held in parts if len(np.unique(labels[fit])) == labels.max() + 1]
    losses = [sum(_loss(strength, train, labels, fit, held) for fit, held in usable) for strength in STRENGTHS]
    return STRENGTHS[int(np.argmin(losses))] if usable else 1.0


def _loss(strength: float, train: NDArray, labels: NDArray, fit: NDArray, held: NDArray) -> float:
    """Log-loss of the rows `held`, summed over them, each by one over its class's share."""
    found = _fitted(strength, train[fit], labels[fit]).predict_proba(train[held])[np.arange(len(held)), labels[held]]
    return float((-np.log(np.maximum(found, 1e-12)) / np.bincount(labels)[labels[held]]).sum())


def _fitted(strength: float, rows: NDArray, labels: NDArray) -> "Pipeline":
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    regression = LogisticRegression(C=strength, class_weight="balanced", max_iter=ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the weakest regularisation; its loss is what counts
        return make_pipeline(StandardScaler(), regression).fit(rows, labels)


def scores(labels: NDArray, probabilities: NDArray) -> dict[str, float]:
    """Balanced accuracy, and AUROC of each class against the others, averaged over the classes.

    Args:
        labels: the true classes (M,).
        probabilities: (M, classes).
    """
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    # Of two classes `finetune.metrics.classification.auroc` takes the second one's area alone, which differs from this
    # mean in its last bits, and it gives the areas of a thousand weighted resamples at once.
    areas = [roc_auc_score(labels == label, column) for label, column in enumerate(probabilities.T)]
    return {
        "balanced_accuracy": float(balanced_accuracy_score(labels, probabilities.argmax(1))),
        "auroc": float(np.mean(areas)),
    }
