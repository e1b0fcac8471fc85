"""Scores at fixed times: scikit-survival's values, known truth, and no weight that is made up."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from survivors import Survivors, survivors
from test_concordance import structured

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.censoring import Censoring
from stexpr.evaluate.slides.horizons import brier_score, integrated_auc, integrated_brier, time_dependent_auc

HORIZONS = np.array([0.2, 0.4, 0.6, 0.9])


def predicted_survival(of: Survivors) -> np.ndarray:
    return np.exp(-np.exp(of.log_hazard)[:, None] * HORIZONS)


@pytest.mark.parametrize("seed", range(5))
def test_values_are_scikit_survivals(seed: int) -> None:
    oracle = pytest.importorskip("sksurv.metrics", reason="the oracle scikit-survival is not installed (extra: oracles)")
    training, of = survivors(200, seed), survivors(80, 100 + seed)
    of = of.only(of.time < training.time.max())  # scikit-survival wants every patient inside
    sides, censoring = (structured(training), structured(of)), Censoring.of(training.time, training.event)
    expected, mean = oracle.cumulative_dynamic_auc(*sides, of.log_hazard, HORIZONS)
    data = (of.time, of.event, HORIZONS, censoring)
    np.testing.assert_allclose(time_dependent_auc(of.log_hazard, *data), expected, atol=1e-10)
    assert integrated_auc(of.log_hazard, *data) == pytest.approx(mean, abs=1e-10)
    survival = predicted_survival(of)
    np.testing.assert_allclose(brier_score(survival, *data), oracle.brier_score(*sides, survival, HORIZONS)[1], atol=1e-10)
    expected = oracle.integrated_brier_score(*sides, survival, HORIZONS)
    assert integrated_brier(survival, *data) == pytest.approx(expected, abs=1e-10)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_without_censoring_they_are_auroc_and_squared_error(seed: int) -> None:
    of = survivors(40, seed, censoring=0)
    none = Censoring.of(of.time, of.event)
    horizons = np.array([np.median(of.time)])
    dead = of.time <= horizons[0]
    if dead.all():
        return
    value = time_dependent_auc(of.log_hazard, of.time, of.event, horizons, none)[0]
    assert value == pytest.approx(auroc(of.log_hazard, dead))
    assert time_dependent_auc(np.exp(of.log_hazard), of.time, of.event, horizons, none)[0] == value
    assert time_dependent_auc(-of.log_hazard, of.time, of.event, horizons, none)[0] == pytest.approx(1 - value)
    survival = np.random.default_rng(seed).uniform(size=(40, 1))
    expected = np.mean((~dead - survival[:, 0]) ** 2)
    assert brier_score(survival, of.time, of.event, horizons, none)[0] == pytest.approx(expected)


def test_the_true_survival_has_the_lowest_brier_score() -> None:
    of = survivors(4000, 1, decimals=4)
    censoring, true = Censoring.of(of.time, of.event), predicted_survival(of)
    best = integrated_brier(true, of.time, of.event, HORIZONS, censoring)
    for wrong in (true**2, np.sqrt(true), np.full_like(true, 0.5)):
        assert integrated_brier(wrong, of.time, of.event, HORIZONS, censoring) > best + 0.002


def test_what_has_no_weight_raises() -> None:
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True])
    short = Censoring.of(np.array([0.5, 1.5]), np.array([True, True]))
    with pytest.raises(MetricError, match="past the last training follow-up"):
        time_dependent_auc(np.arange(4.0), time, event, np.array([2.5]), short)
    with pytest.raises(MetricError, match="past the last training follow-up"):
        brier_score(np.full((4, 1), 0.5), time, event, np.array([2.5]), short)
    enough = Censoring.of(time, event)
    with pytest.raises(MetricError, match=r"at time 0\.5 0 patients have had the event"):
        time_dependent_auc(np.arange(4.0), time, event, np.array([0.5]), enough)
    with pytest.raises(MetricError, match="nobody is seen beyond time 4"):
        brier_score(np.full((4, 1), 0.5), time, event, np.array([4.0]), enough)
    with pytest.raises(MetricError, match="1 horizons"):
        integrated_brier(np.full((4, 1), 0.5), time, event, np.array([2.0]), enough)
    with pytest.raises(DataError, match="each later than the last"):
        time_dependent_auc(np.arange(4.0), time, event, np.array([2.0, 1.0]), enough)
    with pytest.raises(DataError, match=r"chance in \[0, 1\]"):
        brier_score(np.full((4, 1), 1.5), time, event, np.array([2.0]), enough)
