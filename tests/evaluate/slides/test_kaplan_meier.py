"""Survival curves: lifelines' values, who is at risk, and cut-offs from training."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from survivors import SMALL, Survivors, survivors

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.kaplan_meier import kaplan_meier, risk_groups


@pytest.mark.parametrize("seed", range(5))
def test_curves_are_lifelines(seed: int) -> None:
    lifelines = pytest.importorskip("lifelines", reason="the oracle lifelines is not installed (extra: oracles)")
    of = survivors(80, seed)
    curve = kaplan_meier(of.time, of.event)
    fitted = lifelines.KaplanMeierFitter().fit(of.time, of.event)
    np.testing.assert_array_equal(curve.table.time, fitted.timeline[1:])
    np.testing.assert_allclose(curve.survival, fitted.survival_function_.to_numpy()[1:, 0], atol=1e-12)
    bounds = fitted.confidence_interval_survival_function_.to_numpy()[1:]
    inside = curve.survival > 0
    np.testing.assert_allclose(curve.low[inside], bounds[inside, 0], atol=1e-8)
    np.testing.assert_allclose(curve.high[inside], bounds[inside, 1], atol=1e-8)
    np.testing.assert_array_equal(curve.table.at_risk, fitted.event_table["at_risk"].to_numpy()[1:])
    assert curve.median == pytest.approx(fitted.median_survival_time_)


@settings(deadline=None, max_examples=40)
@given(SMALL, st.permutations(range(12)))
def test_order_does_not_matter_and_curves_fall(of: Survivors, order: list[int]) -> None:
    curve, other = (kaplan_meier(one.time, one.event) for one in (of, of.only(np.array(order))))
    np.testing.assert_array_equal(curve.survival, other.survival)
    assert (np.diff(curve.survival) <= 0).all()
    known = curve.survival > 0
    assert (curve.low[known] <= curve.survival[known]).all()
    assert (curve.survival[known] <= curve.high[known]).all()


def test_without_censoring_survival_is_the_share_left() -> None:
    of = survivors(50, 3, censoring=0)
    times = np.array([0.2, 0.55, 1.0, 2.0])
    curve = kaplan_meier(of.time, of.event)
    np.testing.assert_allclose(curve.at(times), [(of.time > time).mean() for time in times], atol=1e-12)
    np.testing.assert_array_equal(curve.at_risk(times), [(of.time >= time).sum() for time in times])
    assert curve.at(np.array([1e6]))[0] == pytest.approx(0)


def test_past_the_last_patient_nothing_is_known() -> None:
    curve = kaplan_meier(np.array([1.0, 2.0, 3.0]), np.array([True, False, False]))
    np.testing.assert_allclose(curve.at(np.array([0.5, 1.0, 3.0, 3.5])), [1, 2 / 3, 2 / 3, np.nan])
    np.testing.assert_array_equal(curve.at_risk(np.array([0.0, 1.0, 1.5, 3.0, 4.0])), [3, 3, 2, 1, 0])
    assert np.isnan(curve.median)


@pytest.mark.parametrize("time", [0.0, -1.0, np.nan, np.inf])
def test_times_are_positive(time: float) -> None:
    with pytest.raises(DataError, match="time is"):
        kaplan_meier(np.array([1.0, time]), np.array([True, True]))


def test_groups_are_cut_at_the_training_median() -> None:
    groups = risk_groups(np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.0, 9.0]))
    np.testing.assert_array_equal(groups, [False, False, True])
    with pytest.raises(MetricError, match="no training patient"):
        risk_groups(np.array([0.0]), np.array([]))
    with pytest.raises(MetricError, match="no patient"):
        kaplan_meier(np.array([]), np.array([], dtype=bool))
