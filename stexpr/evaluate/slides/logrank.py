"""Do groups of patients survive unlike? The log-rank test, stratified by fold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.kaplan_meier import time_table

__all__ = ["LogRank", "log_rank"]


@dataclass(frozen=True)
class LogRank:
    """Events seen in each group against those expected if all groups survived alike.

    Attributes:
        chi2: Of `freedom` degrees of freedom.
        p: Two-sided (with more groups than two: of any difference).
        freedom: Groups compared, less one.
        groups: Names, in order of first patient.
        observed: Events by group.
        expected: Events by group, over strata.
    """

    chi2: float
    p: float
    freedom: int
    groups: tuple[str, ...]
    observed: Int[Array, "K"]
    expected: Float64[Array, "K"]


def log_rank(
    time: Float[Array, "P"], event: Bool[Array, "P"], groups: Sequence[str], strata: Sequence[str] | None = None
) -> LogRank:
    """Compare the survival of groups of patients.

    Args:
        time: To the event, or to the last time a patient was seen.
        event: True where the event was observed.
        groups: Group of each patient, such as high and low risk by a cut-off from training.
        strata: Stratum of each patient: the fold, since groups cut by different networks are compared within folds only.

    Raises:
        MetricError: One group, or groups that are never at risk together when an event happens.
        DataError: A time that is not positive and finite, or unlike lengths.

    Reference:
        Mantel (1966), Cancer Chemotherapy Reports 50:163-170.
    """
    from scipy.stats import chi2

    stratum = np.asarray(["all"] * len(time) if strata is None else strata)
    names, member = tuple(dict.fromkeys(groups)), np.asarray(groups)
    if not len(time) == len(event) == len(member) == len(stratum):
        raise DataError(
            f"{len(time)} times, {len(event)} events, {len(member)} groups, {len(stratum)} strata: give one of each"
        )
    observed = np.array([int(event[member == name].sum()) for name in names])
    expected, variance = np.zeros(len(names)), np.zeros((len(names), len(names)))
    for one in dict.fromkeys(stratum.tolist()):
        inside = stratum == one
        expectation, spread = _within(time[inside], event[inside], member[inside][:, None] == np.asarray(names))
        expected, variance = expected + expectation, variance + spread
    freedom = int(np.linalg.matrix_rank(variance, hermitian=True)) if len(names) > 1 else 0
    if not freedom:
        raise MetricError(f"groups {', '.join(map(repr, names))} are never at risk together when an event happens")
    excess = observed - expected
    statistic = float(excess @ np.linalg.pinv(variance, hermitian=True) @ excess)
    return LogRank(statistic, float(chi2.sf(statistic, freedom)), freedom, names, observed, expected)


def _within(
    time: Float[Array, "N"], event: Bool[Array, "N"], member: Bool[Array, "N K"]
) -> tuple[Float64[Array, "K"], Float64[Array, "K K"]]:
    """Give the expected events of each group in one stratum, and their (hypergeometric) covariance."""
    table = time_table(time, event)
    deadly = np.flatnonzero(table.events)
    n, d = table.at_risk[deadly], table.events[deadly]
    share = (time >= table.time[deadly, None]).astype(np.float64) @ member / n[:, None]  # (T, K)
    scale = d * (n - d) / np.maximum(n - 1, 1)
    return d @ share, np.diag(scale @ share) - np.einsum("t,tk,tl->kl", scale, share, share)
