"""A score computed many times over, on patients drawn again or with predictions that change hands.

A replicate of a fold is a row of places: whose prediction is read, and whose truth stands beside it. Drawn patients keep their
own truth; shuffled predictions meet the truth of others; swapped heads lie one after the other, and a place says which.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from stexpr.errors import MetricError
from stexpr.evaluate.slides.agreement import spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.held_out import Metric
from stexpr.evaluate.slides.inputs import Array

__all__ = ["Picks", "replicate_scores"]

CELLS: Final = 4_000_000
"""Entries of the tables made at a time."""


@dataclass(frozen=True)
class Picks:
    """The replicates of one fold.

    Attributes:
        predicted: Places among predictions.
        truth: Places among truths, of the same shape.
        shuffled: Every row of `predicted` holds the same places in another order, and rows of `truth` are alike.
    """

    predicted: Int[Array, "R N"]
    truth: Int[Array, "R N"]
    shuffled: bool = False


def replicate_scores(
    metric: Metric, picks: Mapping[str, Picks], predicted: Array, truth: tuple[Array, ...]
) -> Float64[Array, "R"]:
    """Average a metric over folds, once for each replicate.

    AUROC and Spearman's correlation are computed for all replicates at once, to the numbers that a loop gives.

    Args:
        metric: A function of predictions and truth, or one per fold.
        picks: Replicates by fold.
        predicted: What `Picks.predicted` points into.
        truth: What `Picks.truth` points into, as the metric takes it.

    Returns:
        NaN where any fold leaves the metric undefined.
    """
    values = []
    for fold, pick in picks.items():
        of_fold = metric[fold] if isinstance(metric, Mapping) else metric
        at_once = AT_ONCE.get(of_fold)
        if at_once is None:
            values.append(_one_by_one(of_fold, pick, predicted, truth))
        else:
            step = max(1, CELLS // (2 * pick.predicted.shape[1]))
            parts = [
                Picks(pick.predicted[start : start + step], pick.truth[start : start + step], pick.shuffled)
                for start in range(0, len(pick.predicted), step)
            ]
            values.append(np.concatenate([at_once(part, predicted, truth[0]) for part in parts]))
    return np.asarray(np.mean(np.stack(values, axis=1), axis=1))


def _one_by_one(metric: Callable[..., float], picks: Picks, predicted: Array, truth: tuple[Array, ...]) -> Float64[Array, "R"]:
    values = np.empty(len(picks.predicted))
    for k, (whose, beside) in enumerate(zip(picks.predicted, picks.truth, strict=True)):
        try:
            values[k] = metric(predicted[whose], *(array[beside] for array in truth))
        except MetricError:
            values[k] = np.nan
    return values


def _auroc(picks: Picks, predicted: Float[Array, "V"], positive: Bool[Array, "P"]) -> Float64[Array, "R"]:
    """Count by value: each positive patient is above the negative ones of lower values, and level with half of its equals."""
    if picks.shuffled:
        return _shuffled_auroc(picks, predicted, positive[picks.truth[0]])
    used = np.zeros(len(predicted), dtype=bool)
    used[picks.predicted] = True
    values, place = np.unique(predicted[used], return_inverse=True)
    n, level = len(picks.predicted), np.zeros(len(predicted), dtype=np.int64)
    level[used] = place
    cell = level[picks.predicted] + len(values) * np.arange(n)[:, None]
    is_positive = positive[picks.truth]
    above, below = (np.bincount(cell[rows], minlength=n * len(values)).reshape(n, -1) for rows in (is_positive, ~is_positive))
    twice = (above * (2 * below.cumsum(axis=1) - below)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    return np.where(pairs > 0, twice / 2 / np.maximum(pairs, 1), np.nan)


def _shuffled_auroc(picks: Picks, predicted: Float[Array, "V"], positive: Bool[Array, "N"]) -> Float64[Array, "R"]:
    """Sum the ranks that fall to positive patients; ranks themselves do not change."""
    from scipy.stats import rankdata

    rank, n = np.zeros(len(predicted)), int(positive.sum())
    rank[picks.predicted[0]] = rankdata(predicted[picks.predicted[0]])
    pairs = n * (len(positive) - n)
    if not pairs:
        return np.full(len(picks.predicted), np.nan)
    return np.asarray((rank[picks.predicted[:, positive]].sum(axis=1) - n * (n + 1) / 2) / pairs)


def _spearman(picks: Picks, predicted: Float[Array, "V"], measured: Float[Array, "P"]) -> Float64[Array, "R"]:
    from scipy.stats import rankdata

    x, y = rankdata(predicted[picks.predicted], axis=1), rankdata(measured[picks.truth], axis=1)
    middle = (x.shape[1] + 1) / 2
    x, y = x - middle, y - middle
    scale = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    return np.where(scale > 0, (x * y).sum(axis=1) / np.where(scale > 0, scale, 1), np.nan)


AT_ONCE: Final[Mapping[Callable[..., float], Callable[[Picks, Array, Array], Array]]] = {auroc: _auroc, spearman: _spearman}
