"""Does a higher log-hazard go with an earlier event?

A pair of patients is comparable where the event of one was observed, and the other was then still without it: seen later,
or censored at the same time. Tied log-hazards count one half. No index is ever turned around: below .5 the model ranks the
wrong way.
"""

import numpy as np
from jaxtyping import Bool, Float, Float64

from stexpr.errors import MetricError
from stexpr.evaluate.slides.censoring import Censoring
from stexpr.evaluate.slides.inputs import Array, check_finite, check_survival

__all__ = ["harrell_c", "uno_c"]

EVENTS_AT_ONCE = 256


def harrell_c(log_hazard: Float[Array, "P"], time: Float[Array, "P"], event: Bool[Array, "P"]) -> float:
    """Share of comparable pairs in which the patient with the earlier event has the higher log-hazard.

    It depends on how patients were censored; see `uno_c`.

    Args:
        log_hazard: Higher is riskier (a predicted time has to be negated).
        time: To the event, or to the last time a patient was seen.
        event: True where the event was observed.

    Raises:
        MetricError: No comparable pair.
        DataError: A log-hazard that is not finite, or a time that is not positive and finite.

    Reference:
        Harrell et al. (1996), Statistics in Medicine 15:361-387.

    Example:
        >>> harrell_c(np.array([3.0, 1.0, 2.0]), np.array([1.0, 2.0, 3.0]), np.array([True, True, False]))
        0.6666666666666666
    """
    check_survival(time, event)
    return _concordance(log_hazard, time, event, event.astype(np.float64))


def uno_c(
    log_hazard: Float[Array, "P"],
    time: Float[Array, "P"],
    event: Bool[Array, "P"],
    censoring: Censoring,
    until: float | None = None,
) -> float:
    """Harrell's c with pairs weighted by the inverse squared chance of being observed, so that censoring does not matter.

    Args:
        log_hazard: Higher is riskier.
        time: To the event, or to the last time a patient was seen.
        event: True where the event was observed.
        censoring: Of the training patients of the fold.
        until: Count events before this time only; needed where test patients were followed longer than training patients.

    Raises:
        MetricError: No comparable pair, or an event past the training follow-up.
        DataError: A log-hazard that is not finite, or a time that is not positive and finite.

    Reference:
        Uno et al. (2011), Statistics in Medicine 30:1105-1117.
    """
    check_survival(time, event)
    counted = event & (time < (np.inf if until is None else until))
    weights = np.zeros(len(time))
    weights[counted] = censoring.at(time[counted]) ** -2.0
    return _concordance(log_hazard, time, event, weights)


def _concordance(
    log_hazard: Float[Array, "P"], time: Float[Array, "P"], event: Bool[Array, "P"], weights: Float64[Array, "P"]
) -> float:
    check_finite("log_hazard", log_hazard, time)
    concordant = comparable = 0.0
    first = np.flatnonzero(weights > 0)
    for start in range(0, len(first), EVENTS_AT_ONCE):
        i = first[start : start + EVENTS_AT_ONCE, None]
        pairs = (time > time[i]) | ((time == time[i]) & ~event)
        score = (log_hazard < log_hazard[i]) + 0.5 * (log_hazard == log_hazard[i])
        comparable += float((weights[i] * pairs).sum())
        concordant += float((weights[i] * pairs * score).sum())
    if comparable == 0:
        raise MetricError(
            f"no comparable pair among {len(time)} patients with {int(event.sum())} events; c needs an event before the end of "
            "another patient's follow-up"
        )
    return concordant / comparable
