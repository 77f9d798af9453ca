"""Temperature scaling (Guo et al. 2017, section 4.2): one number on validation cases, that makes probabilities honest.

Probabilities of several members and mirrorings are averaged first and scaled then (Rahaman and Thiery 2021: a mean of
calibrated members is under-confident). Their logarithms are the logits that the temperature divides.

Scores of boxes are left alone. What a box's score should be the probability of depends on the IoU that counts as a
hit, and after suppression the boxes kept are not those it was trained on; a monotone map (Platt's) would change
neither AP nor FROC, which is what a detection model is judged and its threshold chosen by.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from scanfoundry.finetune.metrics.reliability import around
from scanfoundry.finetune.metrics.weighted import Record

COLDEST, HOTTEST = 0.2, 10.0
TINY = np.finfo(np.float64).tiny


def fit_temperature(logits: npt.NDArray, labels: npt.NDArray) -> float:
    """The temperature T in [COLDEST, HOTTEST] of the lowest negative log-likelihood of softmax(logits / T).

    The likelihood is convex in 1 / T. Never worse than T = 1 on these cases. T is 1 where they cannot decide: no case;
    one class alone among the labels; every case right (the likelihood would fall forever as T goes to 0).

    Args:
        logits: (N, K).
        labels: (N,) true classes.
    """
    logits, labels = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if len(np.unique(labels)) < 2 or (logits.argmax(1) == labels).all():
        return 1.0

    def loss(inverse: float) -> float:
        return negative_log_likelihood(logits * inverse, labels)

    found = minimize_scalar(loss, bounds=(1 / HOTTEST, 1 / COLDEST), method="bounded", options={"xatol": 1e-6})
    best = min((1.0, float(found.x), 1 / HOTTEST, 1 / COLDEST), key=loss)
    return 1 / best


def negative_log_likelihood(logits: npt.NDArray, labels: npt.NDArray) -> float:
    """Mean -log of the true class's probability: (N, K), (N,)."""
    return float(-np.take_along_axis(log_softmax(logits, axis=1), labels[:, None], axis=1).mean())


def tempered(probabilities: npt.NDArray, temperature: float) -> npt.NDArray[np.float64]:
    """Probabilities (..., K) at a temperature; unchanged at 1."""
    exact = np.asarray(probabilities, np.float64)
    return exact if temperature == 1 else softmax(_logits(exact) / temperature, axis=-1)


def temperature_of(records: list[Record]) -> float:
    """The temperature from validation records that hold `label` and `probabilities` (predicted at temperature 1)."""
    if not records:
        return 1.0
    probabilities = np.array([record["probabilities"] for record in records], float)
    return temperature_by(probabilities, np.array([record["label"] for record in records]))


def temperature_by(probabilities: npt.NDArray, labels: npt.NDArray) -> float:
    """The temperature from probabilities (N, K) at temperature 1 and true classes (N,)."""
    return fit_temperature(_logits(np.asarray(probabilities, np.float64)), labels)


def drawn_spots(truth: npt.NDArray, number: int, seed: int = 0) -> npt.NDArray[np.int_]:
    """Voxels around what a label map labels, drawn evenly; the same for the same map and seed.

    Args:
        truth: a label map (D, H, W).
        number: how many at most.
        seed: of the draw.

    Returns:
        (n, 3) indices D, H, W.
    """
    near = around(truth)
    low, shape = np.array([part.start for part in near]), truth[near].shape
    count = int(np.prod(shape))
    chosen = np.random.default_rng(seed).choice(count, min(number, count), replace=False)
    return low + np.stack(np.unravel_index(np.sort(chosen), shape), axis=1)


def _logits(probabilities: npt.NDArray) -> npt.NDArray[np.float64]:
    return np.log(np.maximum(probabilities, TINY))
