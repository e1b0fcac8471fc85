"""Does a probability mean what it says? Of the patients called 30 %, three in ten should be positive."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.inputs import Array, both_classes, check_finite

__all__ = ["Temperature", "calibration_error", "fit_temperature", "reliability_curve"]

BINS = 10
LOG_RANGE = 5.0
"""Temperatures from e^-5 to e^5; at the ends the likelihood has no maximum."""
Z = 1.959963984540054


@dataclass(frozen=True)
class Temperature:
    """One number that logits are divided by: above 1 for a network that is too sure. It changes no rank."""

    value: float

    def probabilities(self, logits: Float[Array, "P"]) -> Float64[Array, "P"]:
        """Give calibrated probabilities."""
        from scipy.special import expit

        return np.asarray(expit(logits.astype(np.float64) / self.value))


def fit_temperature(logits: Float[Array, "P"], positive: Bool[Array, "P"]) -> Temperature:
    """Find the temperature of highest likelihood.

    Args:
        logits: Of patients held out in *inner* folds: neither those the network was trained on nor those who are scored.
        positive: Their labels.

    Raises:
        MetricError: No positive or no negative patient, or logits that part them without error or rank them wrongly, for which
            no temperature is best.
        DataError: A logit that is not finite.

    Reference:
        Guo et al. (2017), ICML, PMLR 70:1321-1330.
    """
    from scipy.optimize import minimize_scalar

    check_finite("logits", logits, positive)
    both_classes(positive)
    against = np.where(positive, -1.0, 1.0) * logits.astype(np.float64)

    def loss(log_temperature: float) -> float:
        return float(np.logaddexp(0, against * np.exp(-log_temperature)).mean())

    found = minimize_scalar(loss, bounds=(-LOG_RANGE, LOG_RANGE), method="bounded", options={"xatol": 1e-8})
    if abs(found.x) > LOG_RANGE - 0.01:
        reason = "they part the patients without error" if found.x < 0 else "they rank the patients wrongly"
        raise MetricError(f"no temperature is best for these {len(logits)} logits: {reason}; leave them as they are")
    return Temperature(float(np.exp(found.x)))


def reliability_curve(probability: Float[Array, "P"], positive: Bool[Array, "P"], bins: int = BINS) -> pd.DataFrame:
    """Compare predicted with observed shares of positive patients, in bins of equal width.

    Returns:
        By bin that holds a patient: `from`, `to`, `predicted` (mean), `observed`, `low`, `high` (95 %, Wilson), `n_patients`.

    Raises:
        DataError: A probability outside [0, 1], or no bin.
        MetricError: No patient.
    """
    bin_of = _bins(probability, positive, bins)
    rows = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        n, share = int(inside.sum()), float(positive[inside].mean())
        middle, scale = share + Z**2 / (2 * n), 1 + Z**2 / n
        half = Z * np.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
        predicted = float(probability[inside].mean(dtype=np.float64))
        bounds = (max(0.0, (middle - half) / scale), min(1.0, (middle + half) / scale))
        rows.append((number / bins, (number + 1) / bins, predicted, share, *bounds, n))
    return pd.DataFrame(rows, columns=["from", "to", "predicted", "observed", "low", "high", "n_patients"])


def calibration_error(probability: Float[Array, "P"], positive: Bool[Array, "P"], bins: int = BINS) -> float:
    """Mean distance between predicted and observed shares over bins of equal width, weighted by patients (ECE).

    It is above 0 for a perfect model too, the more so the fewer patients a bin holds: compare at one number of patients.

    Raises:
        DataError: A probability outside [0, 1], or no bin.
        MetricError: No patient.

    Example:
        >>> round(calibration_error(np.array([0.9, 0.9, 0.9, 0.9]), np.array([True, True, True, False])), 3)
        0.15
    """
    bin_of = _bins(probability, positive, bins)
    excess = np.bincount(bin_of, weights=probability.astype(np.float64) - positive)
    return float(np.abs(excess).sum() / len(probability))


def _bins(probability: Float[Array, "P"], positive: Bool[Array, "P"], bins: int) -> Int[Array, "P"]:
    check_finite("probability", probability, positive)
    if not len(probability):
        raise MetricError("no patient: calibration needs one at least")
    if bins < 1 or (probability < 0).any() or (probability > 1).any():
        raise DataError(
            f"{bins} bins for probabilities from {probability.min():g} to {probability.max():g}; give one bin or more, and "
            "probabilities in [0, 1], not logits"
        )
    return np.minimum((probability.astype(np.float64) * bins).astype(np.int64), bins - 1)
