"""Scores within folds, then averaged: predictions of different folds come from different networks and share no scale.

A log-hazard of 2 in one fold may be a higher risk than 3 in another, so ranks over all folds mix models with patients.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
from jaxtyping import Int

from stexpr.errors import DataError, LeakageError, MetricError
from stexpr.evaluate.slides.inputs import Array, check_finite

__all__ = ["FoldScores", "HeldOut", "Metric", "mean_over_folds", "score_folds"]

Metric: TypeAlias = Callable[..., float] | Mapping[str, Callable[..., float]]
"""A function of predictions and truth, or one per fold where it needs the fold's training patients (Uno's c)."""

CONSTANT = "the metric is not defined for these predictions (constant?)"


@dataclass(frozen=True)
class HeldOut:
    """Who was held out in which fold: one entry per patient, who is the unit of every score, interval and test.

    Slides of one patient are joined before (as one bag, or by their mean prediction), since they are not independent.

    Raises:
        DataError: No patient, or unlike numbers of patients and folds.
        LeakageError: A patient twice. Repetitions of a cross-validation are scored one by one.
    """

    patients: tuple[str, ...]
    folds: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.patients or len(self.patients) != len(self.folds):
            raise DataError(
                f"{len(self.patients)} patients but {len(self.folds)} folds: give one fold per patient, one at least"
            )
        twice = [patient for patient, n in Counter(self.patients).items() if n > 1]
        if twice:
            raise LeakageError(
                f"{len(twice)} patients stand twice (first: {twice[0]!r}); join the slides of a patient, and score "
                "repetitions one by one"
            )

    def __len__(self) -> int:
        return len(self.patients)

    @cached_property
    def rows(self) -> dict[str, Int[Array, "N"]]:
        """Rows of each fold, folds in the order of their first patient."""
        folds = np.asarray(self.folds)
        return {fold: np.flatnonzero(folds == fold) for fold in dict.fromkeys(self.folds)}

    def only(self, rows: Int[Array, "N"]) -> "HeldOut":
        """Return the patients at these rows."""
        return HeldOut(tuple(self.patients[row] for row in rows), tuple(self.folds[row] for row in rows))


@dataclass(frozen=True)
class FoldScores:
    """A score within folds.

    Attributes:
        mean: Plain mean over the folds whose labels define the score. NaN where there is none, and where predictions of any
            such fold leave it undefined: a mean over the others would reward the model that failed.
        values: By fold; NaN where undefined.
        undefined: Why, by fold.
        pooled: Over all patients at once, as some papers print it; never the score. NaN where undefined.
    """

    mean: float
    values: dict[str, float]
    undefined: dict[str, str] = field(default_factory=dict)
    pooled: float = np.nan

    def __str__(self) -> str:
        said = f"{self.mean:.3f} (mean of {len(self.values) - len(self.undefined)} folds; pooled {self.pooled:.3f})"
        return said + "".join(f"; fold {fold}: {reason}" for fold, reason in self.undefined.items())


def score_folds(metric: Metric, held_out: HeldOut, predicted: Array, *truth: Array) -> FoldScores:
    """Score every fold, and average over folds.

    Args:
        metric: Takes the arrays that follow, of one fold.
        held_out: Patients and folds of the rows.
        predicted: Predictions on held-out patients.
        truth: What `metric` takes after the predictions: labels, or time and event.

    Raises:
        DataError: Unlike lengths, a prediction that is not finite, or a fold without its metric.
    """
    check_arrays(held_out, predicted, *truth)
    values, undefined = fold_values(metric, held_out.rows, (predicted, *truth))
    pooled = np.nan if isinstance(metric, Mapping) else _value(metric, (predicted, *truth))[0]
    for fold, value in values.items():
        if np.isnan(value) and fold not in undefined:
            undefined[fold] = CONSTANT
    without_label = {fold for fold, reason in undefined.items() if reason != CONSTANT}
    return FoldScores(_mean([value for fold, value in values.items() if fold not in without_label]), values, undefined, pooled)


def mean_over_folds(metric: Metric, rows: Mapping[str, Int[Array, "N"]], arrays: tuple[Array, ...]) -> float:
    """Average over the folds given, NaN where any of them is undefined: one replicate of a bootstrap or permutation."""
    values, _ = fold_values(metric, rows, arrays)
    return _mean(list(values.values()))


def check_arrays(held_out: HeldOut, predicted: Array, *truth: Array) -> None:
    """Refuse what does not fit together; see `score_folds`."""
    like = np.empty(len(held_out))
    check_finite("predicted", predicted, like)
    for values in truth:
        if len(values) != len(like):
            raise DataError(f"the truth has {len(values)} rows for {len(like)} patients; give one row per patient")


def fold_values(
    metric: Metric, rows: Mapping[str, Int[Array, "N"]], arrays: tuple[Array, ...]
) -> tuple[dict[str, float], dict[str, str]]:
    """Return the value of each fold, and why there is none where labels do not define it."""
    values, undefined = {}, {}
    for fold, inside in rows.items():
        if isinstance(metric, Mapping) and fold not in metric:
            raise DataError(f"no metric for fold {fold!r}; there are metrics for {', '.join(map(repr, metric))}")
        of_fold = metric[fold] if isinstance(metric, Mapping) else metric
        values[fold], reason = _value(of_fold, tuple(array[inside] for array in arrays))
        if reason:
            undefined[fold] = reason
    return values, undefined


def _value(metric: Callable[..., float], arrays: tuple[Array, ...]) -> tuple[float, str]:
    try:
        return float(metric(*arrays)), ""
    except MetricError as error:
        return np.nan, str(error)


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else np.nan
