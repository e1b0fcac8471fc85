"""Agreement of predicted with measured expression, one number per gene.

Every function takes spots x genes and returns one value per gene, in the order of the columns. Sums run in float64
whatever the input. A value that is not defined is NaN, never 0, and the gene stays in its place, so that two models are
always scored on the same genes.
"""

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

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

ROWS, GENES = 512, 256
"""Spots and genes taken at a time, so that the float64 copies stay in the processor's cache."""

SPREAD = 1e-3
"""Share of a gene's mean square that its variance must exceed for raw sums to be trusted: at most three digits of sixteen
cancel above it. Below it lie all genes that are constant up to rounding, in float16 too."""


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
    _check_shapes(predicted, measured)
    r, sound = np.empty(predicted.shape[1]), np.empty(predicted.shape[1], dtype=bool)
    with np.errstate(invalid="ignore", over="ignore"):  # what is not finite has unsound sums, and is refused below
        for genes in _blocks(predicted.shape[1], GENES):
            r[genes], sound[genes] = _pearson(predicted[:, genes], measured[:, genes])
    unsound = np.flatnonzero(~sound)
    constant = _check_values(predicted, measured, unsound)
    for block in _blocks(unsound.size, GENES):
        x, y = predicted[:, unsound[block]], measured[:, unsound[block]]
        shifted, _ = _pearson(x, y, x.mean(axis=0, dtype=np.float64), y.mean(axis=0, dtype=np.float64))
        r[unsound[block]] = np.where(constant[block], np.nan, shifted)
    return r


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
    constant = check_pair(predicted, measured)
    r, mean_rank = np.empty(predicted.shape[1]), (len(predicted) + 1) / 2
    for genes in _blocks(predicted.shape[1], GENES):
        r[genes], _ = _pearson(_ranks(predicted[:, genes]), _ranks(measured[:, genes]), mean_rank, mean_rank)
    return np.where(constant, np.nan, r)


def rmse_per_gene(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> Float64[Array, "G"]:
    """Root of the mean squared error over spots, in expression units; 0 is perfect.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    check_pair(predicted, measured)
    squared = np.zeros(predicted.shape[1])
    for rows in _blocks(len(predicted), ROWS):
        error = np.subtract(predicted[rows], measured[rows], dtype=np.float64)
        squared += np.einsum("sg,sg->g", error, error)
    return np.sqrt(squared / len(predicted))


def mae_per_gene(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> Float64[Array, "G"]:
    """Mean absolute error over spots, in expression units; 0 is perfect.

    Raises:
        MetricError: Fewer than two spots, unlike shapes, or a value that is not finite.
    """
    check_pair(predicted, measured)
    absolute = np.zeros(predicted.shape[1])
    for rows in _blocks(len(predicted), ROWS):
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
    check_pair(predicted, measured)
    if training_mean.shape != predicted.shape[1:] or not np.isfinite(training_mean).all():
        raise MetricError(f"the training mean needs one finite value for each of {predicted.shape[1]} genes")
    reference = training_mean.astype(np.float64)
    residual, total = np.zeros(predicted.shape[1]), np.zeros(predicted.shape[1])
    for rows in _blocks(len(predicted), ROWS):
        truth = measured[rows].astype(np.float64)
        error, spread = truth - predicted[rows], truth - reference
        residual += np.einsum("sg,sg->g", error, error)
        total += np.einsum("sg,sg->g", spread, spread)
    defined = total > 0
    return np.where(defined, 1 - residual / np.where(defined, total, 1), np.nan)


def _pearson(
    predicted: Float[Array, "S G"],
    measured: Float[Array, "S G"],
    shift_x: Float[Array, "G"] | float = 0.0,
    shift_y: Float[Array, "G"] | float = 0.0,
) -> tuple[Float64[Array, "G"], Bool[Array, "G"]]:
    """Correlate by one pass over sums about the shifts, and tell whose sums are sound: finite, and not mostly canceled."""
    n, shape = len(predicted), predicted[:ROWS].shape
    buffer_x, buffer_y = np.empty(shape), np.empty(shape)
    sx, sy, xx, yy, xy = np.zeros((5, shape[1]))
    for rows in _blocks(n, ROWS):
        size = len(predicted[rows])
        x, y = buffer_x[:size], buffer_y[:size]
        for values, source, shift in ((x, predicted, shift_x), (y, measured, shift_y)):
            values[...] = source[rows]
            if np.any(shift):
                values -= shift
        sx += x.sum(axis=0)
        sy += y.sum(axis=0)
        xx += np.einsum("sg,sg->g", x, x)
        yy += np.einsum("sg,sg->g", y, y)
        xy += np.einsum("sg,sg->g", x, y)
    vx, vy = np.maximum(xx - sx**2 / n, 0), np.maximum(yy - sy**2 / n, 0)
    scale = np.sqrt(vx) * np.sqrt(vy)
    defined = scale > 0
    r = np.where(defined, np.clip((xy - sx * sy / n) / np.where(defined, scale, 1), -1, 1), np.nan)
    return r, (vx > SPREAD * xx) & (vy > SPREAD * yy)  # nothing that is not finite exceeds


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


def _blocks(n: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, n, size))


def check_pair(predicted: Array, measured: Array) -> Bool[Array, "G"]:
    """Refuse what has no metric, and return which genes are constant on either side (one look at the extremes does both)."""
    _check_shapes(predicted, measured)
    return _check_values(predicted, measured, np.arange(predicted.shape[1]))


def _check_shapes(predicted: Array, measured: Array) -> None:
    if predicted.shape != measured.shape or predicted.ndim != 2:
        raise MetricError(
            f"predicted has shape {predicted.shape}, measured {measured.shape}; both must be spots x genes of one shape"
        )
    if len(predicted) < 2:
        raise MetricError(f"{len(predicted)} spots have no spread; a metric over spots needs at least 2")


def _check_values(predicted: Array, measured: Array, columns: Int[Array, "C"]) -> Bool[Array, "C"]:
    """Refuse values that are not finite among the columns given; return which of these are constant on either side."""
    genes = predicted.shape[1]
    constant = np.zeros(columns.size, dtype=bool)
    for name, values in (("predicted", predicted), ("measured", measured)):
        chosen = values if columns.size == genes else values[:, columns]
        low, high = chosen.min(axis=0), chosen.max(axis=0)
        finite = np.isfinite(low) & np.isfinite(high)
        if not finite.all():
            raise MetricError(
                f"{name} expression is not finite for {int((~finite).sum())} of {genes} genes "
                f"(first: column {int(columns[np.argmin(finite)])})"
            )
        constant |= _equal(low, high)
    return constant


def _equal(low: Float[Array, "G"], high: Float[Array, "G"]) -> Bool[Array, "G"]:
    lowest, highest = low.astype(np.float64), high.astype(np.float64)
    step = np.finfo(low.dtype).eps * np.maximum(np.abs(lowest), np.abs(highest))
    return np.asarray(highest - lowest <= NOISE_STEPS * step)
