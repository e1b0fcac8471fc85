"""Calibration: a known temperature comes back, and probabilities that mean what they say show no error."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from sklearn.calibration import calibration_curve

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.calibration import calibration_error, fit_temperature, reliability_curve


def drawn(seed: int, n: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, n)
    return temperature * logits, rng.random(n) < expit(logits)


@pytest.mark.parametrize("true", [0.4, 1.0, 3.0])
def test_the_planted_temperature_comes_back(true: float) -> None:
    logits, positive = drawn(1, 20_000, true)
    found = fit_temperature(logits, positive)
    assert found.value == pytest.approx(true, rel=0.05)
    calibrated = found.probabilities(logits)
    assert calibration_error(calibrated, positive) < 0.015
    assert auroc(calibrated, positive) == pytest.approx(auroc(logits, positive))
    if true != 1:
        assert calibration_error(expit(logits), positive) > 0.03


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_temperature_follows_the_scale_of_logits(seed: int) -> None:
    logits, positive = drawn(seed, 200)
    assert fit_temperature(2 * logits, positive).value == pytest.approx(2 * fit_temperature(logits, positive).value, rel=1e-4)
    assert fit_temperature(-logits, ~positive).value == pytest.approx(fit_temperature(logits, positive).value, rel=1e-4)


def test_no_temperature_is_best_for_separated_or_inverted_logits() -> None:
    positive = np.array([True, True, False, False])
    with pytest.raises(MetricError, match="part the patients without error"):
        fit_temperature(np.array([2.0, 1.0, -1.0, -2.0]), positive)
    with pytest.raises(MetricError, match="rank the patients wrongly"):
        fit_temperature(np.array([-2.0, -1.0, 1.0, 2.0]), positive)
    with pytest.raises(MetricError, match="4 positive and 0 negative"):
        fit_temperature(np.arange(4.0), np.ones(4, dtype=bool))


def test_the_curve_is_scikit_learns_and_adds_up_to_the_error() -> None:
    logits, positive = drawn(3, 500)
    probability = expit(2 * logits)
    curve = reliability_curve(probability, positive)
    observed, predicted = calibration_curve(positive, probability, n_bins=10)
    np.testing.assert_allclose(curve["observed"], observed)
    np.testing.assert_allclose(curve["predicted"], predicted)
    error = ((curve["observed"] - curve["predicted"]).abs() * curve["n_patients"]).sum() / 500
    assert calibration_error(probability, positive) == pytest.approx(error)
    assert ((curve["low"] <= curve["observed"]) & (curve["observed"] <= curve["high"])).all()


def test_wilsons_bounds_are_statsmodels() -> None:
    from statsmodels.stats.proportion import proportion_confint

    curve = reliability_curve(np.full(9, 0.95), np.arange(9) < 8)
    assert (curve["low"][0], curve["high"][0]) == pytest.approx(proportion_confint(8, 9, method="wilson"))
    assert curve[["from", "to", "n_patients"]].to_numpy().tolist() == [[0.9, 1.0, 9]]


def test_logits_are_no_probabilities() -> None:
    positive = np.array([True, False])
    with pytest.raises(DataError, match="not logits"):
        calibration_error(np.array([-1.0, 2.0]), positive)
    with pytest.raises(DataError, match="0 bins"):
        reliability_curve(np.array([0.1, 0.2]), positive, bins=0)
    with pytest.raises(MetricError, match="no patient"):
        calibration_error(np.array([]), np.array([], dtype=bool))
