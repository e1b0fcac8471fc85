"""Abstaining by novelty: what it saves."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.risk_coverage import RiskCoverage, risk_coverage

values = st.lists(st.tuples(st.integers(0, 6), st.floats(0, 10), st.sampled_from("abc")), min_size=1, max_size=60)


def arrays(spots) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    novelty, error, patients = zip(*spots, strict=True)
    return np.array(novelty, dtype=float), np.array(error), np.array(patients)


@settings(deadline=None)
@given(values, st.randoms(use_true_random=False))
def test_laws(spots, random):
    novelty, error, patients = arrays(spots)
    curve = risk_coverage(novelty, error, patients)
    # at full coverage it is the mean error, and never outside of the errors
    for i, patient in enumerate(curve.patients):
        own = error[patients == patient]
        assert curve.n_spots[i] == len(own)
        assert curve.random[i] == pytest.approx(own.mean())
        assert own.min() - 1e-9 <= min(curve.risk[i].min(), curve.area[i])
        assert max(curve.risk[i].max(), curve.area[i]) <= own.max() + 1e-9
    # neither the order of the spots nor the scale of novelty matters
    shuffled = list(range(len(spots)))
    random.shuffle(shuffled)
    again = risk_coverage(np.exp(novelty[shuffled]), error[shuffled], patients[shuffled])
    np.testing.assert_allclose(again.risk, curve.risk)
    np.testing.assert_allclose(again.area, curve.area)
    # through JSON and back
    read = RiskCoverage.from_dict(json.loads(json.dumps(curve.to_dict())))
    np.testing.assert_array_equal(read.risk, curve.risk)
    assert (read.patients, read.n_spots) == (curve.patients, curve.n_spots)


@settings(deadline=None)
@given(values)
def test_no_order_is_better_than_that_of_the_error_itself(spots):
    novelty, error, patients = arrays(spots)
    by_novelty, best = risk_coverage(novelty, error, patients), risk_coverage(error, error, patients)
    assert (best.risk <= by_novelty.risk + 1e-9).all()
    assert (best.area <= by_novelty.area + 1e-9).all()
    worst = risk_coverage(-error, error, patients)
    assert (worst.risk >= by_novelty.risk - 1e-9).all()
    assert (np.diff(best.risk, axis=1) >= -1e-9).all()  # and it rises with coverage


def test_novelty_that_says_nothing_is_the_random_baseline():
    rng = np.random.default_rng(0)
    error = rng.gamma(2, 1, 900)
    patients = np.repeat(["p1", "p2", "p3"], 300)
    flat = risk_coverage(np.ones(900), error, patients)
    np.testing.assert_allclose(flat.risk, np.repeat(flat.random[:, None], 20, axis=1))
    np.testing.assert_allclose(flat.area, flat.random)
    assert flat.gain == pytest.approx(0)
    assert abs(risk_coverage(rng.uniform(size=900), error, patients).gain) < 0.1


def test_the_area_is_the_mean_of_the_curve():
    rng = np.random.default_rng(1)
    novelty, error = rng.uniform(size=50), rng.uniform(size=50)
    # the same by brute force: on a fine grid the spot at the edge is kept in part
    order = np.argsort(novelty)
    fine = (np.arange(200_000) + 0.5) / 200_000
    summed = np.interp(fine * 50, np.arange(51), np.concatenate([[0], np.cumsum(error[order])]))
    assert risk_coverage(novelty, error, np.array(["a"] * 50)).area[0] == pytest.approx((summed / (fine * 50)).mean(), abs=1e-5)


def test_patients_count_alike_and_are_ranked_by_themselves():
    # patient b is more novel as a whole and no worse for it; within each, novelty tells the error
    novelty = np.concatenate([np.linspace(0, 1, 100), np.linspace(5, 6, 20)])
    error = np.concatenate([np.linspace(0, 1, 100), np.linspace(0, 1, 20)])
    curve = risk_coverage(novelty, error, np.repeat(["a", "b"], [100, 20]))
    np.testing.assert_allclose(curve.mean_risk, curve.risk.mean(axis=0))
    np.testing.assert_allclose(curve.risk[0], curve.risk[1], atol=0.03)
    assert curve.gain > 0.4


def test_what_is_no_curve_is_refused():
    with pytest.raises(MetricError, match="got 0, 0 and 0"):
        risk_coverage(np.array([]), np.array([]), np.array([]))
    with pytest.raises(MetricError, match="not finite"):
        risk_coverage(np.array([np.nan]), np.array([1.0]), np.array(["a"]))
    assert np.isnan(risk_coverage(np.array([1.0]), np.array([0.0]), np.array(["a"])).gain)
    whole = risk_coverage(np.array([1.0]), np.array([0.5]), np.array(["a"])).to_dict()
    for broken in (
        {},
        {**whole, "area": []},
        {**whole, "coverage": "x"},
        {**whole, "risk": [[1.0]]},
        {**whole, "patients": []},
    ):
        with pytest.raises(DataError, match="no risk-coverage curve"):
            RiskCoverage.from_dict(broken)
