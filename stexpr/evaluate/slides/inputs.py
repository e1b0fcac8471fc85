"""What every score over patients refuses: wrong values (`DataError`) and labels that define no score (`MetricError`)."""

from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from stexpr.errors import DataError, MetricError

__all__ = ["Array", "both_classes", "check_finite", "check_survival"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def check_finite(name: str, values: Float[Array, "P *K"], like: Shaped[Array, "P"]) -> None:
    """Refuse predictions that are not finite or of another number of patients than `like`.

    Raises:
        DataError: NaN, an infinite value, or unlike lengths.
    """
    if len(values) != len(like):
        raise DataError(f"{name} has {len(values)} rows for {len(like)} patients; give one row per patient")
    wrong = np.flatnonzero(~np.isfinite(values).all(axis=tuple(range(1, values.ndim))))
    if wrong.size:
        raise DataError(f"{name} is not finite for {wrong.size} of {len(values)} patients (first: row {wrong[0]})")


def both_classes(positive: Bool[Array, "P"]) -> tuple[Int[Array, "N"], Int[Array, "M"]]:
    """Return the rows of positive and of negative patients.

    Raises:
        MetricError: One of the two has no patient.
    """
    rows = np.flatnonzero(positive), np.flatnonzero(~positive)
    if not (rows[0].size and rows[1].size):
        raise MetricError(f"{rows[0].size} positive and {rows[1].size} negative patients; at least one of each is needed")
    return rows


def check_survival(time: Float[Array, "P"], event: Bool[Array, "P"]) -> None:
    """Refuse times that are no times to an event; `event` is True where the event was observed.

    Raises:
        DataError: A time that is not positive and finite, or unlike lengths.
    """
    check_finite("time", time, event)
    if (time <= 0).any():
        raise DataError(
            f"time is {time.min():g} for a patient; times to an event are positive: leave such patients out by name"
        )
