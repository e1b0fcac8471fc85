"""Intervals and p-values of any score within folds: patients are drawn, or predictions shuffled, within their fold only."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Int

from stexpr.errors import DataError
from stexpr.evaluate.intervals import BOOTSTRAP_FROM, REPLICATES, Interval, percentile_interval
from stexpr.evaluate.slides.held_out import HeldOut, Metric, check_arrays, fold_values, mean_over_folds
from stexpr.evaluate.slides.inputs import Array

__all__ = ["bootstrap_interval", "permutation_p"]

BOOTSTRAP: Final = "95 % bootstrap over patients within folds, conditional on the trained models"
PERMUTATIONS: Final = 999
MOST_UNDEFINED: Final = 0.1
TIE: Final = 1e-9
"""A shuffle that repeats the data may differ from it in the last bits, and must count."""


def bootstrap_interval(
    metric: Metric,
    held_out: HeldOut,
    predicted: Array,
    *truth: Array,
    strata: Sequence[str] | None = None,
    n: int = REPLICATES,
    seed: int = 0,
) -> Interval:
    """Resample patients within folds, with replacement, and score each time.

    Networks are not trained again: the interval says how the score varies with who is in the test folds, not with who was in
    training. The draw depends on the folds, strata and seed alone, so that two heads are resampled alike.

    Args:
        metric: As for `score_folds`.
        held_out: Patients and folds of the rows.
        predicted: Predictions on held-out patients.
        truth: What `metric` takes after the predictions.
        strata: Draw within these too, such as the label: a rare label then stands in every replicate as often as in the data.
        n: Number of replicates.
        seed: Recorded with the scores.

    Returns:
        The central 95 %. Replicates that leave a fold undefined which the data define are counted in `kind`; NaN bounds, and
        why, above a tenth of them and below 10 patients.

    Raises:
        DataError: What `score_folds` refuses, or strata of other patients.
    """
    check_arrays(held_out, predicted, *truth)
    rows = _defined_rows(metric, held_out, (predicted, *truth))
    if len(held_out) < BOOTSTRAP_FROM:
        return Interval(np.nan, np.nan, f"none: {len(held_out)} patients, a bootstrap needs {BOOTSTRAP_FROM}")
    if not rows:
        return Interval(np.nan, np.nan, "none: the score is undefined in every fold")
    parts = {fold: _parts(inside, held_out, strata) for fold, inside in rows.items()}
    rng, replicates = np.random.default_rng(seed), np.empty(n)
    for k in range(n):
        drawn = {fold: np.concatenate([rng.choice(part, len(part)) for part in each]) for fold, each in parts.items()}
        replicates[k] = mean_over_folds(metric, drawn, (predicted, *truth))
    lost = int(np.isnan(replicates).sum())
    kind = f"{BOOTSTRAP}; {lost} of {n} replicates undefined" if lost else BOOTSTRAP
    if lost > MOST_UNDEFINED * n:
        return Interval(np.nan, np.nan, f"none: {lost} of {n} bootstrap replicates undefined; draw within labels (strata)")
    return percentile_interval(replicates, kind)


def permutation_p(
    metric: Metric,
    held_out: HeldOut,
    predicted: Array,
    *truth: Array,
    greater: bool = True,
    n: int = PERMUTATIONS,
    seed: int = 0,
) -> float:
    """Chance of a score at least as good if predictions had nothing to do with the patients of their fold.

    Args:
        metric: As for `score_folds`.
        held_out: Patients and folds of the rows.
        predicted: Shuffled within folds, which leaves the folds' own means and the labels alone.
        truth: What `metric` takes after the predictions.
        greater: Whether a higher score is better; False for errors such as Brier's.
        n: Number of shuffles.
        seed: Recorded with the scores.

    Returns:
        One-sided, (1 + shuffles as good) / (1 + n), never 0; NaN where the score is undefined.

    Raises:
        DataError: What `score_folds` refuses.
    """
    check_arrays(held_out, predicted, *truth)
    rows = _defined_rows(metric, held_out, (predicted, *truth))
    sign = 1.0 if greater else -1.0
    observed = sign * mean_over_folds(metric, rows, (predicted, *truth))
    if np.isnan(observed):
        return np.nan
    rng, shuffled, reached = np.random.default_rng(seed), predicted.copy(), 0
    for _ in range(n):
        for inside in rows.values():
            shuffled[inside] = predicted[rng.permutation(inside)]
        reached += sign * mean_over_folds(metric, rows, (shuffled, *truth)) >= observed - TIE
    return (1 + reached) / (1 + n)


def _defined_rows(metric: Metric, held_out: HeldOut, arrays: tuple[Array, ...]) -> dict[str, Int[Array, "N"]]:
    """Rows of the folds whose labels define the metric."""
    _, undefined = fold_values(metric, held_out.rows, arrays)
    return {fold: inside for fold, inside in held_out.rows.items() if fold not in undefined}


def _parts(inside: Int[Array, "N"], held_out: HeldOut, strata: Sequence[str] | None) -> list[Int[Array, "M"]]:
    if strata is None:
        return [inside]
    if len(strata) != len(held_out):
        raise DataError(f"strata of {len(strata)} patients for {len(held_out)}; give one per patient")
    stratum = np.asarray(strata)[inside]
    return [inside[stratum == one] for one in np.unique(stratum)]
