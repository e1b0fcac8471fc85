"""Survival over time, with who is still at risk, and risk groups cut where the training patients say."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from stexpr.errors import MetricError
from stexpr.evaluate.slides.inputs import Array, check_finite, check_survival

__all__ = ["KaplanMeier", "TimeTable", "kaplan_meier", "risk_groups", "time_table"]

Z = 1.959963984540054


@dataclass(frozen=True)
class TimeTable:
    """At each time that anything happens, ascending: patients at risk just before, events, patients censored."""

    time: Float64[Array, "T"]
    at_risk: Int[Array, "T"]
    events: Int[Array, "T"]
    censored: Int[Array, "T"]


@dataclass(frozen=True)
class KaplanMeier:
    """A survival curve, constant from each time to the next.

    Attributes:
        table: Times with patients at risk.
        survival: Share that survives beyond each time.
        low: 95 % bound (Greenwood, on the log-log scale); 1 before the first event, NaN where survival is 0.
        high: Likewise.
    """

    table: TimeTable
    survival: Float64[Array, "T"]
    low: Float64[Array, "T"]
    high: Float64[Array, "T"]

    @property
    def median(self) -> float:
        """First time at which half of the patients or fewer survive; NaN where the curve stays above."""
        below = np.flatnonzero(self.survival <= 0.5)
        return float(self.table.time[below[0]]) if below.size else np.nan

    def at(self, times: Float[Array, "K"]) -> Float64[Array, "K"]:
        """Read survival: 1 before the first time, NaN past the last one unless the curve has come down to 0."""
        position = np.searchsorted(self.table.time, times, side="right")
        known = (times <= self.table.time[-1]) | (self.survival[-1] == 0)
        return np.where(known, np.r_[1.0, self.survival][position], np.nan)

    def at_risk(self, times: Float[Array, "K"]) -> Int[Array, "K"]:
        """Count patients at risk just before each time, for the table below a plot."""
        return np.asarray(np.r_[self.table.at_risk, 0][np.searchsorted(self.table.time, times, side="left")])


def time_table(time: Float[Array, "P"], event: Bool[Array, "P"]) -> TimeTable:
    """Count at each time who is at risk, has the event, is censored.

    Raises:
        DataError: A time that is not positive and finite.
        MetricError: No patient.
    """
    check_survival(time, event)
    if not len(time):
        raise MetricError("no patient: a survival curve needs one at least")
    times, inverse = np.unique(time.astype(np.float64), return_inverse=True)
    events = np.bincount(inverse, weights=event, minlength=len(times)).astype(np.int64)
    leaving = np.bincount(inverse, minlength=len(times))
    return TimeTable(times, leaving[::-1].cumsum()[::-1], events, leaving - events)


def kaplan_meier(time: Float[Array, "P"], event: Bool[Array, "P"]) -> KaplanMeier:
    """Estimate survival of censored patients; at a tied time events come before censoring.

    Args:
        time: To the event, or to the last time a patient was seen.
        event: True where the event was observed.

    Raises:
        DataError: A time that is not positive and finite.
        MetricError: No patient.

    Example:
        >>> kaplan_meier(np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, False, True, False])).survival
        array([0.75 , 0.75 , 0.375, 0.375])
    """
    table = time_table(time, event)
    survival = np.cumprod(1 - table.events / table.at_risk)
    left = np.where(survival > 0, table.at_risk - table.events, 1)
    variance = np.cumsum(table.events / (table.at_risk * left))
    inside = (survival > 0) & (survival < 1)
    log = np.log(np.where(inside, survival, 0.5))
    half = Z * np.sqrt(variance) / -log
    outside = np.where(survival == 1, 1.0, np.nan)
    low, high = (np.where(inside, np.exp(log * np.exp(sign * half)), outside) for sign in (1, -1))
    return KaplanMeier(table, survival, low, high)


def risk_groups(log_hazard: Float[Array, "P"], training: Float[Array, "Q"]) -> Bool[Array, "P"]:
    """Call patients at high risk whose log-hazard exceeds the median of the training patients of their fold.

    A cut-off chosen on the patients it divides makes any curve look parted.

    Returns:
        True for high risk.

    Raises:
        DataError: A log-hazard that is not finite.
        MetricError: No training patient.
    """
    check_finite("log_hazard", log_hazard, log_hazard)
    check_finite("the training log-hazard", training, training)
    if not len(training):
        raise MetricError("no training patient to take the cut-off from")
    return np.asarray(log_hazard > np.median(training))
