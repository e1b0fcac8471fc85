"""Agreement of predicted with measured expression, one number per gene.

Every function takes spots x genes and returns one value per gene, in the order of the columns. Sums run in float64
whatever the input. A value that is not defined is NaN, never 0, and the gene stays in its place, so that two models are
always scored on the same genes.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from stexpr.errors import MetricError

__all__ = [
    "constant_per_gene",
    "mae_per_gene",
    "pearson_per_gene",
    "r2_per_gene",
    "rmse_per_gene",
    "spearman_per_gene",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NOISE_STEPS = 16
"""Values that differ by fewer floating-point steps than this count as equal: a network that collapsed to one value
still differs in the last bits between batches, and correlating those would score rounding."""

ROWS = 512
"""Spots taken at a time, so that the float64 copies stay in the processor's cache."""


def constant_per_gene(values: Float[Array, "S G"]) -> Bool[Array, "G"]:
    """Tell which genes have one value in all spots.

    Values count as equal when they lie within 16 floating-point steps of their own type, at their own magnitude.

    Args:
        values: Expression, predicted or measured.

    Returns:
        True where the gene is constant.

    Example:
        >>> constant_per_gene(np.array([[1.0, 0.0], [1.0, 2.0]]))
        array([ True, False])
    """
    return _equal(values.min(axis=0), values.max(axis=0))


def pearson_per_gene(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> Float64[Array, "G"]:
    """Correlate predicted with measured expression, one gene at a time.

    A gene that is constant over the spots, in either array, has no correlation: its entry is NaN, never 0, and it is
    never dropped, which would let two models be scored on different genes.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same units and gene order.

    Returns:
        Correlations in [-1, 1], NaN where undefined, in the order of the genes given.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.

    Example:
        >>> pearson_per_gene(np.array([[0.0, 5.0], [1.0, 5.0], [2.0, 5.0]]), np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 4.0]]))
        array([ 1., nan])
    """
    constant = _check(predicted, measured)
    return _pearson(predicted, measured, constant)


def spearman_per_gene(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> Float64[Array, "G"]:
    """Correlate the ranks of predicted and measured expression, one gene at a time; ties share their mean rank.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same gene order.

    Returns:
        Rank correlations in [-1, 1], NaN where a gene is constant in either array, in the order of the genes given.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    constant = _check(predicted, measured)
    return _pearson(_ranks(predicted), _ranks(measured), constant)


def rmse_per_gene(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> Float64[Array, "G"]:
    """Root of the mean squared error over spots, in expression units; 0 is perfect.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    _check(predicted, measured)
    squared = np.zeros(predicted.shape[1])
    for rows in _row_blocks(len(predicted)):
        error = np.subtract(predicted[rows], measured[rows], dtype=np.float64)
        squared += np.einsum("sg,sg->g", error, error)
    return np.sqrt(squared / len(predicted))


def mae_per_gene(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> Float64[Array, "G"]:
    """Mean absolute error over spots, in expression units; 0 is perfect.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    _check(predicted, measured)
    absolute = np.zeros(predicted.shape[1])
    for rows in _row_blocks(len(predicted)):
        absolute += np.abs(np.subtract(predicted[rows], measured[rows], dtype=np.float64)).sum(axis=0)
    return absolute / len(predicted)


def r2_per_gene(
    predicted: Float[Array, "S G"], measured: Float[Array, "S G"], training_mean: Float[Array, "G"]
) -> Float64[Array, "G"]:
    """Share of the squared error of the training mean that the prediction removes.

    The reference is the mean of the *training* spots, which a model could know, not that of the test spots: 0 is as good
    as predicting the training mean everywhere, 1 is perfect, and there is no lower bound. With the test spots' own mean as
    `training_mean` this is scikit-learn's `r2_score`.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same units and gene order.
        training_mean: Mean expression of each gene over the training spots.

    Returns:
        Values up to 1; NaN for a gene whose measured values all equal the training mean.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    _check(predicted, measured)
    if training_mean.shape != predicted.shape[1:] or not np.isfinite(training_mean).all():
        raise MetricError(f"the training mean needs one finite value for each of {predicted.shape[1]} genes")
    reference = training_mean.astype(np.float64)
    residual, total = np.zeros(predicted.shape[1]), np.zeros(predicted.shape[1])
    for rows in _row_blocks(len(predicted)):
        truth = measured[rows].astype(np.float64)
        error, spread = truth - predicted[rows], truth - reference
        residual += np.einsum("sg,sg->g", error, error)
        total += np.einsum("sg,sg->g", spread, spread)
    defined = total > 0
    return np.where(defined, 1 - residual / np.where(defined, total, 1), np.nan)


def _pearson(predicted: Float[Array, "S G"], measured: Float[Array, "S G"], constant: Bool[Array, "G"]) -> Float64[Array, "G"]:
    # One pass over sums shifted by the mean of the first rows. Raw sums would cancel when a gene's mean is large against
    # its SD; this shift is at most sqrt(S / ROWS) SDs off the mean, so no more than three digits of sixteen can be lost.
    shift_x = predicted[:ROWS].mean(axis=0, dtype=np.float64)
    shift_y = measured[:ROWS].mean(axis=0, dtype=np.float64)
    sx, sy, xx, yy, xy = np.zeros((5, predicted.shape[1]))
    for rows in _row_blocks(len(predicted)):
        x, y = predicted[rows] - shift_x, measured[rows] - shift_y
        sx += x.sum(axis=0)
        sy += y.sum(axis=0)
        xx += np.einsum("sg,sg->g", x, x)
        yy += np.einsum("sg,sg->g", y, y)
        xy += np.einsum("sg,sg->g", x, y)
    n = len(predicted)
    scale = np.sqrt(np.maximum(xx - sx**2 / n, 0)) * np.sqrt(np.maximum(yy - sy**2 / n, 0))
    defined = ~constant & (scale > 0)
    return np.where(defined, np.clip((xy - sx * sy / n) / np.where(defined, scale, 1), -1, 1), np.nan)


def _ranks(values: Float[Array, "S G"]) -> Float64[Array, "S G"]:
    # scipy's rankdata over an axis does the same in twice the time.
    ranks = np.empty((values.shape[1], len(values)))
    for row, column in zip(ranks, np.ascontiguousarray(values.T), strict=True):
        order = np.argsort(column)
        ordered = column[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        sizes = np.diff(starts, append=len(ordered))
        row[order] = np.repeat(starts + (sizes + 1) / 2, sizes)
    return ranks.T


def _row_blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + ROWS) for start in range(0, n, ROWS))


def _check(predicted: Array, measured: Array) -> Bool[Array, "G"]:
    """Refuse what has no metric, and return which genes are constant on either side (one look at the extremes does both)."""
    if predicted.shape != measured.shape or predicted.ndim != 2:
        raise MetricError(
            f"predicted has shape {predicted.shape}, measured {measured.shape}; both must be spots x genes of one shape"
        )
    if len(predicted) < 2:
        raise MetricError(f"{len(predicted)} spots have no spread; a metric over spots needs at least 2")
    constant = np.zeros(predicted.shape[1], dtype=bool)
    for name, values in (("predicted", predicted), ("measured", measured)):
        low, high = values.min(axis=0), values.max(axis=0)
        finite = np.isfinite(low) & np.isfinite(high)
        if not finite.all():
            raise MetricError(
                f"{name} expression is not finite for {int((~finite).sum())} of {finite.size} genes "
                f"(first: column {int(np.argmin(finite))})"
            )
        constant |= _equal(low, high)
    return constant


def _equal(low: Float[Array, "G"], high: Float[Array, "G"]) -> Bool[Array, "G"]:
    lowest, highest = low.astype(np.float64), high.astype(np.float64)
    step = np.finfo(low.dtype).eps * np.maximum(np.abs(lowest), np.abs(highest))
    return np.asarray(highest - lowest <= NOISE_STEPS * step)
