"""Intervals and p-values of any score within folds: patients are drawn, or predictions shuffled, within their fold only."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Int

from stexpr.errors import DataError
from stexpr.evaluate.intervals import BOOTSTRAP_FROM, REPLICATES, Interval, percentile_interval
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.held_out import HeldOut, Metric, check_arrays, fold_values, mean_over_folds
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.replicates import Picks, replicate_scores
from stexpr.evaluate.slides.separation import separated_interval

__all__ = ["Draws", "bootstrap_draws", "bootstrap_interval", "permutation_p", "replicate_interval"]

BOOTSTRAP: Final = "95 % bootstrap over patients within folds, conditional on the trained models"
PERMUTATIONS: Final = 999
MOST_UNDEFINED: Final = 0.1
TIE: Final = 1e-9
"""A shuffle that repeats the data may differ from it in the last bits, and must count."""


@dataclass(frozen=True)
class Draws:
    """How often a board draws, and by which seed; printed with its scores.

    Attributes:
        replicates: Of a bootstrap.
        permutations: Shuffles of a permutation test; a screen of many genes takes as many as its false discovery rate needs.
        swaps: Of two heads that are compared.
        seed: Of all of them.
    """

    replicates: int = REPLICATES
    permutations: int = PERMUTATIONS
    swaps: int = 1999
    seed: int = 0


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
        why, above a tenth of them and below 10 patients. Where replicates score alike, patients drawn again do not tell how far
        off the score may be: an AUROC that is perfect has an exact interval then (see `separation`), a prediction that is
        constant in every fold has its score for certain, and all else has none.

    Raises:
        DataError: What `score_folds` refuses, or strata of other patients.
    """
    check_arrays(held_out, predicted, *truth)
    rows = _defined_rows(metric, held_out, (predicted, *truth))
    if len(held_out) < BOOTSTRAP_FROM:
        return Interval(np.nan, np.nan, f"none: {len(held_out)} patients, a bootstrap needs {BOOTSTRAP_FROM}")
    if not rows:
        return Interval(np.nan, np.nan, "none: the score is undefined in every fold")
    picks = {fold: Picks(drawn, drawn) for fold, drawn in bootstrap_draws(rows, held_out, strata, n, seed).items()}
    found = replicate_interval(replicate_scores(metric, picks, predicted, truth))
    if not found.high - found.low <= TIE or _constant(predicted, rows):
        return found
    exact = None
    if metric is auroc:
        values, _ = fold_values(metric, rows, (predicted, *truth))
        exact = separated_interval(values, rows, truth[0])
    return exact or Interval(np.nan, np.nan, f"none: however the {len(held_out)} patients are drawn, they score alike")


def bootstrap_draws(
    rows: Mapping[str, Int[Array, "N"]], held_out: HeldOut, strata: Sequence[str] | None, n: int, seed: int
) -> dict[str, Int[Array, "R M"]]:
    """Draw the patients of folds again, with replacement; see `bootstrap_interval`.

    Args:
        rows: Rows of each fold.
        held_out: Patients and folds of all rows.
        strata: Draw within these too.
        n: Number of replicates.
        seed: Decides the draw, with the folds and strata alone.

    Raises:
        DataError: Strata of other patients.
    """
    rng = np.random.default_rng(seed)
    parts = {fold: _parts(inside, held_out, strata) for fold, inside in rows.items()}
    return {
        fold: np.hstack([part[rng.integers(0, len(part), (n, len(part)))] for part in each]) for fold, each in parts.items()
    }


def replicate_interval(replicates: Float[Array, "R"]) -> Interval:
    """Take the central 95 % of bootstrap replicates, and count those that leave a fold undefined; see `bootstrap_interval`."""
    n, lost = len(replicates), int(np.isnan(replicates).sum())
    if lost > MOST_UNDEFINED * n:
        return Interval(np.nan, np.nan, f"none: {lost} of {n} bootstrap replicates undefined; draw within labels (strata)")
    return percentile_interval(replicates, f"{BOOTSTRAP}; {lost} of {n} replicates undefined" if lost else BOOTSTRAP)


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
    rng, picks = np.random.default_rng(seed), {}
    for fold, inside in rows.items():
        still = np.broadcast_to(inside, (n, len(inside)))
        picks[fold] = Picks(rng.permuted(still, axis=1), still, shuffled=True)
    reached = sign * replicate_scores(metric, picks, predicted, truth) >= observed - TIE
    return (1 + int(reached.sum())) / (1 + n)


def _defined_rows(metric: Metric, held_out: HeldOut, arrays: tuple[Array, ...]) -> dict[str, Int[Array, "N"]]:
    """Rows of the folds whose labels define the metric."""
    _, undefined = fold_values(metric, held_out.rows, arrays)
    return {fold: inside for fold, inside in held_out.rows.items() if fold not in undefined}


def _constant(predicted: Array, rows: Mapping[str, Int[Array, "N"]]) -> bool:
    """Whether all patients of a fold have one prediction, in every fold."""
    return all(bool((predicted[inside] == predicted[inside[:1]]).all()) for inside in rows.values())


def _parts(inside: Int[Array, "N"], held_out: HeldOut, strata: Sequence[str] | None) -> list[Int[Array, "M"]]:
    if strata is None:
        return [inside]
    if len(strata) != len(held_out):
        raise DataError(f"strata of {len(strata)} patients for {len(held_out)}; give one per patient")
    stratum = np.asarray(strata)[inside]
    return [inside[stratum == one] for one in np.unique(stratum)]
