"""What a correlation is made of: calibration and sequencing depth.

Every function takes spots x genes and answers for all genes at once; what is undefined is NaN and stays in its place.
"""

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from stexpr.errors import MetricError
from stexpr.evaluate.metrics import NOISE_STEPS, check_pair, constant_per_gene

__all__ = ["calibration_slope_per_gene", "depth_stratified_pearson", "standardized_pair"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

STRATA = 4
SPOTS_PER_STRATUM = 4
"""Mean and slope take two degrees of freedom from each stratum; below this hardly anything is left to correlate."""


def calibration_slope_per_gene(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> Float64[Array, "G"]:
    """Slope of the least-squares line of measured on predicted expression.

    1 is calibrated; below 1 the prediction exaggerates differences between spots (the usual face of overfitting), above 1 it
    is too timid. Correlation does not see this, and a calibrated prediction can still have a small r.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same units and gene order.

    Returns:
        Slopes, NaN where the prediction is constant, 0 where only the measured gene is.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.

    Example:
        >>> calibration_slope_per_gene(np.array([[0.0], [2.0], [4.0]]), np.array([[1.0], [2.0], [3.0]]))
        array([0.5])
    """
    check_pair(predicted, measured)
    x, y = _centered(predicted), _centered(measured)
    slope = _ratio(np.einsum("sg,sg->g", x, y), np.einsum("sg,sg->g", x, x))
    return np.where(constant_per_gene(predicted), np.nan, np.where(constant_per_gene(measured), 0.0, slope))


def depth_stratified_pearson(
    predicted: Float[Array, "S G"], measured: Float[Array, "S G"], library: Float[Array, "S"], n_strata: int = STRATA
) -> Float64[Array, "G"]:
    """Correlate predicted with measured expression among spots of like sequencing depth.

    Spots are divided at the quantiles of their library size. Inside each stratum both sides lose their mean *and* their
    linear trend on log library size, for a stratum is never so thin that depth stops varying in it; what is left is
    pooled over the strata into one r. A prediction that knows depth alone has nothing left and comes out near 0 (NaN where
    it is exactly linear in log depth); its plain r can be large, for depth still marks normalized, logged counts.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same gene order.
        library: UMIs of each spot over the whole transcriptome.
        n_strata: Number of strata; spots of equal library size share one, so ties can leave fewer.

    Returns:
        Correlations in [-1, 1], NaN where depth explains a side wholly or it is constant.

    Raises:
        MetricError: Fewer than four spots per stratum, a library size that is not positive, or what `pearson_per_gene` refuses.
    """
    check_pair(predicted, measured)
    if n_strata < 1 or len(predicted) < SPOTS_PER_STRATUM * n_strata:
        raise MetricError(
            f"{len(predicted)} spots in {n_strata} depth strata; at least 1 stratum and {SPOTS_PER_STRATUM} spots in each "
            "are needed, lower n_strata"
        )
    if library.shape != predicted.shape[:1] or not (np.isfinite(library) & (library > 0)).all():
        raise MetricError(f"library needs one positive, finite size for each of {len(predicted)} spots; leave empty spots out")
    depth = np.log(library.astype(np.float64))
    stratum = np.searchsorted(np.quantile(depth, np.arange(1, n_strata) / n_strata), depth, side="right")
    sides = []
    for values in (predicted, measured):
        rest = np.empty(values.shape)
        for number in range(n_strata):
            rest[stratum == number] = _detrended(values[stratum == number], depth[stratum == number])
        sides.append(np.where(_exceeds_rounding(rest, values), rest, np.nan))
    return _correlation(*sides)


def standardized_pair(
    predicted: Float[Array, "S G"], measured: Float[Array, "S G"]
) -> tuple[Float64[Array, "S G"], Float64[Array, "S G"]]:
    """Give every gene mean 0 and (population) SD 1 over the spots, on both sides.

    Args:
        predicted: Model output.
        measured: Ground truth in the same gene order.

    Returns:
        Both; a gene that is constant on either side is NaN on both, so that whatever is computed from them is NaN too.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    constant = check_pair(predicted, measured)

    def standardized(values: Float[Array, "S G"]) -> Float64[Array, "S G"]:
        centered = _centered(values)
        return np.where(constant, np.nan, centered) / np.where(constant, 1, np.sqrt(np.mean(centered**2, axis=0)))

    return standardized(predicted), standardized(measured)


def _centered(values: Float[Array, "S G"]) -> Float64[Array, "S G"]:
    return np.asarray(values - values.mean(axis=0, dtype=np.float64))


def _detrended(values: Float[Array, "S G"], depth: Float64[Array, "S"]) -> Float64[Array, "S G"]:
    if not len(values):
        return np.empty(values.shape)
    centered, trend = _centered(values), depth - depth.mean()
    square = float(trend @ trend) if np.ptp(depth) > 0 else np.inf  # one library size in the stratum has no trend
    return np.asarray(centered - np.outer(trend, trend @ centered) / square)


def _exceeds_rounding(rest: Float64[Array, "N G"], values: Float[Array, "S G"]) -> Bool[Array, "G"]:
    """Tell which genes keep more than rounding when something has been subtracted, as `constant_per_gene` does for values."""
    step = np.finfo(values.dtype).eps * np.abs(values).max(axis=0).astype(np.float64)
    return np.asarray(np.abs(rest).max(axis=0) > NOISE_STEPS * step)


def _correlation(x: Float64[Array, "N G"], y: Float64[Array, "N G"]) -> Float64[Array, "G"]:
    """Correlate what is centered already."""
    scale = np.sqrt(np.einsum("ng,ng->g", x, x)) * np.sqrt(np.einsum("ng,ng->g", y, y))
    return np.clip(_ratio(np.einsum("ng,ng->g", x, y), scale), -1, 1)


def _ratio(numerator: Float64[Array, "G"], denominator: Float64[Array, "G"]) -> Float64[Array, "G"]:
    return np.where(denominator == 0, np.nan, numerator / np.where(denominator == 0, 1, denominator))
