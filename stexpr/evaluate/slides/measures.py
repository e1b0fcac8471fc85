"""Which scores each kind of target has: the first ranks heads, the others stand beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, Float

from stexpr.errors import MetricError
from stexpr.evaluate.slides.agreement import concordance_correlation, pearson, spearman
from stexpr.evaluate.slides.binary import auprc, auroc
from stexpr.evaluate.slides.calibration import calibration_error
from stexpr.evaluate.slides.classes import balanced_accuracy, kappa, macro_auroc, place_spearman, quadratic_kappa
from stexpr.evaluate.slides.concordance import harrell_c, uno_c
from stexpr.evaluate.slides.held_out import FoldScores, Metric, score_folds
from stexpr.evaluate.slides.held_targets import FoldFit, TestedTarget
from stexpr.evaluate.slides.horizons import brier_score, integrated_auc, integrated_brier, time_dependent_auc
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.results import TargetKind

__all__ = ["HORIZON_SCORES", "MEASURES", "Measure", "heading_of", "horizon_scores", "mean_absolute_error", "score_target"]


def mean_absolute_error(predicted: Float[Array, "P"], measured: Float[Array, "P"]) -> float:
    """Average the distance of predicted from measured values, in their unit.

    Raises:
        MetricError: No patient.
    """
    if not len(measured):
        raise MetricError("no patient: an error needs one at least")
    return float(np.abs(predicted.astype(np.float64) - measured).mean())


@dataclass(frozen=True)
class Measure:
    """One score of a target.

    Attributes:
        name: As in files.
        heading: As people read it.
        function: Takes predictions and truth of one fold; or, of `weighted` ones, what makes that from the fold's fit.
        weighted: Whether it needs the training patients of the fold.
        greater: Whether a higher score is better.
        ranked: Whether ranks within the fold (of each class) give the same score.
        chance: What a head that knows nothing has; None where that depends on the cohort.
    """

    name: str
    heading: str
    function: Callable[..., float]
    weighted: bool = False
    greater: bool = True
    ranked: bool = True
    chance: float | None = None

    def metric(self, target: TestedTarget) -> Metric:
        """Return what `score_folds` takes."""
        if not self.weighted:
            return self.function
        return {fold: partial(self.function, fit) for fold, fit in target.fits.items()}


def _uno(fit: FoldFit, log_hazard: Float[Array, "P"], time: Float[Array, "P"], event: Bool[Array, "P"]) -> float:
    """Count events up to the last follow-up of the fold's training patients: beyond it no weight is known."""
    return uno_c(log_hazard, time, event, fit.censoring, until=float(fit.censoring.time[-1]))


SPEARMAN: Final = Measure("spearman", "Spearman", spearman, chance=0.0)
AGREEMENT: Final = (
    SPEARMAN,
    Measure("pearson", "Pearson", pearson, ranked=False, chance=0.0),
    Measure("ccc", "CCC", concordance_correlation, ranked=False, chance=0.0),
    Measure("mae", "MAE", mean_absolute_error, greater=False, ranked=False),
)
MEASURES: Final[Mapping[TargetKind, tuple[Measure, ...]]] = {
    "binary": (
        Measure("auroc", "AUROC", auroc, chance=0.5),
        Measure("auprc", "AUPRC", auprc),
        Measure("ece", "ECE", calibration_error, greater=False, ranked=False),
    ),
    "multiclass": (
        Measure("macro_auroc", "macro AUROC", macro_auroc, chance=0.5),
        Measure("balanced_accuracy", "balanced accuracy", balanced_accuracy, ranked=False),
        Measure("kappa", "kappa", kappa, ranked=False, chance=0.0),
    ),
    "ordinal": (
        Measure("quadratic_kappa", "quadratic kappa", quadratic_kappa, ranked=False, chance=0.0),
        Measure("spearman", "Spearman", place_spearman, ranked=False, chance=0.0),
    ),
    "fraction": AGREEMENT,
    "continuous": AGREEMENT,
    "survival": (
        Measure("harrell_c", "Harrell's c", harrell_c, chance=0.5),
        Measure("uno_c", "Uno's c", _uno, weighted=True, chance=0.5),
    ),
}
HORIZON_SCORES: Final = {"integrated_auc": "integrated AUC", "integrated_brier": "integrated Brier"}
"""Of survival, beside its measures; a lower Brier score is better."""


def heading_of(measure: str) -> str:
    """Return a measure's name as people read it."""
    return next(
        (one.heading for own in MEASURES.values() for one in own if one.name == measure), HORIZON_SCORES.get(measure, measure)
    )


def score_target(target: TestedTarget) -> dict[str, FoldScores]:
    """Score a target within folds by every measure of its kind, the one that ranks heads first."""
    found = {
        measure.name: score_folds(measure.metric(target), target.held_out, target.value, *target.truth)
        for measure in MEASURES[target.info.kind]
    }
    return found | (horizon_scores(target)[0] if target.info.kind == "survival" else {})


def horizon_scores(target: TestedTarget) -> tuple[dict[str, FoldScores], list[tuple[str, float, float, float, str]]]:
    """Score survival at the horizons of each fold.

    Returns:
        Integrated AUC and Brier score within folds; and by fold and horizon the AUC, the Brier score and why one is undefined.
    """
    values: dict[str, dict[str, float]] = {name: {} for name in HORIZON_SCORES}
    undefined: dict[str, dict[str, str]] = {name: {} for name in HORIZON_SCORES}
    rows = []
    for fold, inside in target.held_out.rows.items():
        fit, truth = target.fits[fold], tuple(array[inside] for array in target.truth)
        asked = {"integrated_auc": (integrated_auc, target.value[inside]), "integrated_brier": (integrated_brier, fit.survival)}
        for name, (score, predicted) in asked.items():
            values[name][fold], reason = _tried(score, fit, predicted, truth, fit.info.horizons)
            if reason:
                undefined[name][fold] = reason
        for place, horizon in enumerate(fit.info.horizons):
            survival = None if fit.survival is None else fit.survival[:, [place]]
            auc, why = _tried(time_dependent_auc, fit, target.value[inside], truth, (horizon,))
            brier, why_not = _tried(brier_score, fit, survival, truth, (horizon,))
            rows.append((fold, horizon, auc, brier, "; ".join(dict.fromkeys(filter(None, (why, why_not))))))
    means = {name: [value for fold, value in values[name].items() if fold not in undefined[name]] for name in values}
    found = {
        name: FoldScores(float(np.mean(means[name])) if means[name] else np.nan, values[name], undefined[name])
        for name in HORIZON_SCORES
    }
    return found, rows


def _tried(
    score: Callable[..., Any], fit: FoldFit, predicted: Array | None, truth: tuple[Array, ...], horizons: tuple[float, ...]
) -> tuple[float, str]:
    if not horizons or predicted is None:
        return np.nan, "the head predicts no survival at a horizon"
    try:
        return float(np.squeeze(score(predicted, *truth, np.array(horizons, dtype=np.float64), fit.censoring))), ""
    except MetricError as error:
        return np.nan, str(error)
