"""Survival predictions at fixed times: is a patient alive at one year, two years, five years?

Patients censored before a time count through the weights of those observed: 1 / chance of not being censored, estimated from
the training patients of the fold. Where that chance is unknown or 0 the score raises; it is never 0.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.censoring import Censoring
from stexpr.evaluate.slides.inputs import Array, check_finite, check_survival
from stexpr.evaluate.slides.kaplan_meier import kaplan_meier

__all__ = ["brier_score", "integrated_auc", "integrated_brier", "time_dependent_auc"]


def time_dependent_auc(
    log_hazard: Float[Array, "P"],
    time: Float[Array, "P"],
    event: Bool[Array, "P"],
    horizons: Float[Array, "T"],
    censoring: Censoring,
) -> Float64[Array, "T"]:
    """Chance that who has had the event by a time has a higher log-hazard than who is still without it (cumulative/dynamic).

    Args:
        log_hazard: Higher is riskier; a tie counts one half.
        time: To the event, or to the last time a patient was seen.
        event: True where the event was observed.
        horizons: Times, ascending, in the unit of `time`.
        censoring: Of the training patients of the fold.

    Returns:
        In [0, 1], one per horizon.

    Raises:
        MetricError: A horizon with no event before it or nobody seen after it, or an event past the training follow-up.
        DataError: Horizons that do not ascend, a log-hazard that is not finite, or a time that is not positive and finite.

    Reference:
        Uno et al. (2007), Journal of the American Statistical Association 102:527-537.
    """
    _check(log_hazard, time, event, horizons)
    scores = np.empty(len(horizons))
    for k, horizon in enumerate(horizons):
        case, control = event & (time <= horizon), time > horizon
        if not (case.any() and control.any()):
            raise MetricError(
                f"at time {horizon:g} {int(case.sum())} patients have had the event and {int(control.sum())} are still seen "
                "without it; AUC needs one of each"
            )
        weights = 1 / censoring.at(time[case])
        higher = log_hazard[case, None] > log_hazard[control]
        tied = log_hazard[case, None] == log_hazard[control]
        scores[k] = weights @ (higher + 0.5 * tied).mean(axis=1) / weights.sum()
    return scores


def integrated_auc(
    log_hazard: Float[Array, "P"],
    time: Float[Array, "P"],
    event: Bool[Array, "P"],
    horizons: Float[Array, "T"],
    censoring: Censoring,
) -> float:
    """Average `time_dependent_auc` over the horizons, each weighted by the share of patients who die since the last one.

    Raises:
        MetricError: As `time_dependent_auc`.
        DataError: As `time_dependent_auc`.

    Reference:
        Lambert and Chevret (2016), Statistical Methods in Medical Research 25:2088-2102.
    """
    scores = time_dependent_auc(log_hazard, time, event, horizons, censoring)
    fallen = -np.diff(kaplan_meier(time, event).at(horizons), prepend=1.0)
    return float(scores @ fallen / fallen.sum())


def brier_score(
    survival: Float[Array, "P T"],
    time: Float[Array, "P"],
    event: Bool[Array, "P"],
    horizons: Float[Array, "T"],
    censoring: Censoring,
) -> Float64[Array, "T"]:
    """Mean squared error of predicted survival at each horizon; 0 is perfect, .25 is what saying .5 to everyone has.

    Args:
        survival: Predicted chance of being without the event beyond each horizon.
        time: To the event, or to the last time a patient was seen.
        event: True where the event was observed.
        horizons: Times, ascending, in the unit of `time`.
        censoring: Of the training patients of the fold.

    Raises:
        MetricError: A horizon past the training follow-up, or past that of every patient here.
        DataError: A chance outside [0, 1], horizons that do not ascend, or a time that is not positive and finite.

    Reference:
        Graf et al. (1999), Statistics in Medicine 18:2529-2545.
    """
    _check(survival, time, event, horizons)
    if (survival < 0).any() or (survival > 1).any():
        raise DataError(f"survival is a chance in [0, 1]; it reaches from {survival.min():g} to {survival.max():g}")
    if horizons[-1] >= time.max(initial=0):
        raise MetricError(f"nobody is seen beyond time {horizons[-1]:g}; the last follow-up is {time.max(initial=0):g}")
    alive = 1 / censoring.at(horizons)
    scores = np.empty(len(horizons))
    for k, horizon in enumerate(horizons):
        weights = np.where(time > horizon, alive[k], 0.0)
        case = event & (time <= horizon)
        weights[case] = 1 / censoring.at(time[case])
        scores[k] = np.mean(weights * ((time > horizon) - survival[:, k].astype(np.float64)) ** 2)
    return scores


def integrated_brier(
    survival: Float[Array, "P T"],
    time: Float[Array, "P"],
    event: Bool[Array, "P"],
    horizons: Float[Array, "T"],
    censoring: Censoring,
) -> float:
    """Average `brier_score` over the time from the first to the last horizon (trapezoids).

    Raises:
        MetricError: Fewer than two horizons, or as `brier_score`.
        DataError: As `brier_score`.
    """
    if len(horizons) < 2:
        raise MetricError(f"{len(horizons)} horizons; an integral over time needs two or more")
    scores = brier_score(survival, time, event, horizons, censoring)
    return float(np.trapezoid(scores, horizons) / (horizons[-1] - horizons[0]))


def _check(
    predicted: Float[Array, "P *K"], time: Float[Array, "P"], event: Bool[Array, "P"], horizons: Float[Array, "T"]
) -> None:
    check_survival(time, event)
    check_finite("predicted", predicted, time)
    if not len(horizons) or not np.isfinite(horizons).all() or (np.diff(horizons) <= 0).any():
        raise DataError(f"horizons are {horizons.tolist()}; give one or more finite times, each later than the last")
