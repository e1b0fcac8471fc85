"""From a probability to yes or no."""

import numpy as np
from jaxtyping import Bool, Float

from stexpr.evaluate.slides.inputs import Array, both_classes, check_finite

__all__ = ["youden_threshold"]


def youden_threshold(probability: Float[Array, "P"], positive: Bool[Array, "P"]) -> float:
    """Choose the probability above which patients are called positive: sensitivity plus specificity is largest.

    Choose it on patients who are neither trained on nor scored.

    Args:
        probability: Of each patient.
        positive: Their labels.

    Returns:
        Half-way between two neighboring probabilities; of equal ones the middle of the lowest.

    Raises:
        MetricError: No positive or no negative patient.
        DataError: A probability that is not finite.

    Reference:
        Youden 1950.
    """
    check_finite("probability", probability, positive)
    both_classes(positive)
    order = np.argsort(-probability, kind="stable")
    ordered, truth = probability[order].astype(np.float64), positive[order]
    ends = np.flatnonzero(np.r_[ordered[1:] != ordered[:-1], True])  # after the last of equal probabilities
    sensitivity = np.cumsum(truth)[ends] / truth.sum()
    false_positive = np.cumsum(~truth)[ends] / (~truth).sum()
    best = int(np.argmax(sensitivity - false_positive))
    lower = ordered[ends[best] + 1] if ends[best] + 1 < len(ordered) else 0.0
    return float((ordered[ends[best]] + lower) / 2)
