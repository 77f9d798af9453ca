"""How unsure a segmentation is of each voxel. Class probabilities in, numbers from 0 (sure) to 1 out."""

import math

from torch import Tensor

ENTROPY, DISAGREEMENT = "uncertainty", "disagreement"


def entropy(probabilities: Tensor, axis: int) -> Tensor:
    """Shannon entropy over the classes, divided by its largest value ln K: 1 where all are equally likely.

    Of the probabilities that are averaged over an ensemble it is the predictive entropy (Lakshminarayanan et al. 2017,
    arXiv 1612.01474, section 3): of the scan and of the model together.

    Args:
        probabilities: K of them along `axis`.
        axis: of the classes.
    """
    return -probabilities.xlogy(probabilities).sum(axis) / math.log(probabilities.shape[axis])


def disagreement(probabilities: Tensor) -> Tensor:
    """Mutual information of class and member of (M, K, ...), over ln K: entropy of the mean less mean of the entropies.

    What more members or more training cases could still settle: 0 where all members say the same, however unsure each
    is (Houlsby et al. 2011, arXiv 1112.5745, equation 2; Depeweg et al. 2018, arXiv 1710.07283, equation 4).
    """
    return (entropy(probabilities.mean(0), 0) - entropy(probabilities, 1).mean(0)).clamp_min(0)
