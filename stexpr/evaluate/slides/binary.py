"""How well a prediction ranks positive before negative patients."""

import numpy as np
from jaxtyping import Bool, Float

from stexpr.evaluate.slides.inputs import Array, both_classes, check_finite

__all__ = ["auprc", "auroc"]


def auroc(predicted: Float[Array, "P"], positive: Bool[Array, "P"]) -> float:
    """Chance that a positive patient has a higher prediction than a negative one; a tie counts one half.

    Never turned around: below .5 the prediction ranks the wrong way.

    Args:
        predicted: Score, logit or probability of being positive.
        positive: The label.

    Returns:
        In [0, 1]; a constant prediction has .5.

    Raises:
        MetricError: No positive or no negative patient.
        DataError: A prediction that is not finite.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
        0.75
    """
    from scipy.stats import rankdata

    check_finite("predicted", predicted, positive)
    positives, negatives = both_classes(positive)
    ranks = rankdata(predicted)[positives].sum()
    n = len(positives)
    return float((ranks - n * (n + 1) / 2) / (n * len(negatives)))


def auprc(predicted: Float[Array, "P"], positive: Bool[Array, "P"]) -> float:
    """Mean precision over the positive patients (average precision), without interpolation between them.

    Chance is the share of positive patients, not .5, so values of cohorts with unlike shares do not compare.

    Args:
        predicted: Score, logit or probability of being positive.
        positive: The label.

    Returns:
        In (0, 1].

    Raises:
        MetricError: No positive or no negative patient.
        DataError: A prediction that is not finite.

    Example:
        >>> round(auprc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])), 3)
        0.833
    """
    check_finite("predicted", predicted, positive)
    both_classes(positive)
    order = np.argsort(-predicted.astype(np.float64), kind="stable")
    ordered, hits = predicted[order], np.cumsum(positive[order])
    last = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # patients of one value share one threshold
    recalled = np.diff(hits[last], prepend=0)
    return float((recalled * hits[last] / (last + 1)).sum() / hits[-1])
