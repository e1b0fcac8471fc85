"""How well a predicted quantity (a Ki67 index, a signature) agrees with the measured one over patients."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from stexpr.errors import MetricError
from stexpr.evaluate.metrics import check_pair, constant_per_gene, pearson_per_gene, spearman_per_gene
from stexpr.evaluate.slides.inputs import Array

__all__ = ["BlandAltman", "bland_altman", "concordance_correlation", "pearson", "spearman"]

LIMIT_Z = 1.959963984540054
"""Standard deviations on either side that hold 95 % of normal differences."""


@dataclass(frozen=True)
class BlandAltman:
    """Predicted minus measured: mean, and the limits that hold 95 % of patients if differences are normal.

    Attributes:
        bias: Mean difference, in the unit of the measurement.
        low: bias - 1.96 SD.
        high: bias + 1.96 SD.
        slope: Change of the difference per unit of the mean of both. Away from 0 the bias depends on the size (a timid
            prediction has a negative slope), and one pair of limits misleads; NaN where that mean is constant.
    """

    bias: float
    low: float
    high: float
    slope: float


def pearson(predicted: Float[Array, "P"], measured: Float[Array, "P"]) -> float:
    """Correlate predicted with measured values; NaN where the prediction is constant.

    Raises:
        MetricError: The measured values are constant, or what `pearson_per_gene` refuses.
    """
    _check_varied(measured)
    return float(pearson_per_gene(predicted[:, None], measured[:, None])[0])


def spearman(predicted: Float[Array, "P"], measured: Float[Array, "P"]) -> float:
    """Correlate ranks of predicted and measured values; NaN where the prediction is constant.

    Raises:
        MetricError: The measured values are constant, or what `spearman_per_gene` refuses.
    """
    _check_varied(measured)
    return float(spearman_per_gene(predicted[:, None], measured[:, None])[0])


def concordance_correlation(predicted: Float[Array, "P"], measured: Float[Array, "P"]) -> float:
    """Give Lin's concordance correlation: agreement with the line of identity, so that a bias or a wrong scale costs.

    Returns:
        In [-1, 1], at most the size of Pearson's r; 0 where the prediction is constant, which agrees with no difference.

    Raises:
        MetricError: The measured values are constant, fewer than two patients, or a value that is not finite.

    Reference:
        Lin (1989), Biometrics 45:255-268 (with variances over n).

    Example:
        >>> round(concordance_correlation(np.array([1.0, 2.0, 3.0]), np.array([2.0, 3.0, 4.0])), 3)
        0.571
    """
    _check_varied(measured)
    x, y = _pair(predicted, measured)
    covariance = float(np.mean((x - x.mean()) * (y - y.mean())))
    return 2 * covariance / float(x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def bland_altman(predicted: Float[Array, "P"], measured: Float[Array, "P"]) -> BlandAltman:
    """Describe differences of predicted and measured values.

    Raises:
        MetricError: Fewer than two patients, or a value that is not finite.

    Reference:
        Bland and Altman (1986), Lancet 327:307-310.
    """
    x, y = _pair(predicted, measured)
    difference, middle = x - y, (x + y) / 2
    bias, half = float(difference.mean()), LIMIT_Z * float(difference.std(ddof=1))
    slope = np.nan
    if not constant_per_gene(middle[:, None])[0]:
        about = middle - middle.mean()
        slope = float(about @ difference / (about @ about))
    return BlandAltman(bias, bias - half, bias + half, slope)


def _pair(predicted: Float[Array, "P"], measured: Float[Array, "P"]) -> tuple[Array, Array]:
    check_pair(predicted[:, None], measured[:, None])
    return predicted.astype(np.float64), measured.astype(np.float64)


def _check_varied(measured: Float[Array, "P"]) -> None:
    if len(measured) < 2:
        raise MetricError(f"{len(measured)} patients; agreement needs at least 2")
    if constant_per_gene(measured[:, None])[0]:
        raise MetricError(f"all {len(measured)} measured values are {measured[0]:g}; agreement needs patients who differ")
