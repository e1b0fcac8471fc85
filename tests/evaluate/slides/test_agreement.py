"""Predicted against measured quantities: oracles, what a bias costs, and what is undefined."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.errors import MetricError
from stexpr.evaluate.slides.agreement import bland_altman, concordance_correlation, pearson, spearman


def pair(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    measured = rng.beta(2, 8, n)
    return 0.3 + 0.5 * measured + rng.normal(0, 0.05, n), measured


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_correlations_are_scipys_and_bound_lins(seed: int) -> None:
    predicted, measured = pair(seed)
    r = pearson(predicted, measured)
    assert r == pytest.approx(scipy.stats.pearsonr(predicted, measured).statistic, abs=1e-12)
    assert spearman(predicted, measured) == pytest.approx(scipy.stats.spearmanr(predicted, measured).statistic, abs=1e-12)
    assert abs(concordance_correlation(predicted, measured)) <= abs(r) + 1e-12
    assert concordance_correlation(measured, predicted) == pytest.approx(concordance_correlation(predicted, measured))
    # Lin's decomposition: r times how alike the scales and places are
    ratio, shift = predicted.std() / measured.std(), (predicted.mean() - measured.mean()) ** 2
    bias = 2 / (ratio + 1 / ratio + shift / (predicted.std() * measured.std()))
    assert concordance_correlation(predicted, measured) == pytest.approx(r * bias, abs=1e-12)


def test_a_bias_costs_concordance_only() -> None:
    measured = np.linspace(0, 1, 9)
    assert concordance_correlation(measured, measured) == pytest.approx(1)
    assert pearson(measured + 1, measured) == pytest.approx(1)
    assert concordance_correlation(measured + 1, measured) < 0.3
    assert concordance_correlation(-measured, measured) < 0
    assert concordance_correlation(np.full(9, 0.5), measured) == 0


@pytest.mark.parametrize("metric", [pearson, spearman, concordance_correlation])
def test_measured_values_must_differ(metric: object) -> None:
    with pytest.raises(MetricError, match=r"all 4 measured values are 0\.2"):
        metric(np.arange(4.0), np.full(4, 0.2))  # type: ignore[operator]
    with pytest.raises(MetricError, match="at least 2"):
        metric(np.ones(1), np.ones(1))  # type: ignore[operator]


@pytest.mark.parametrize("metric", [pearson, spearman])
def test_a_constant_prediction_has_no_correlation(metric: object) -> None:
    assert np.isnan(metric(np.full(4, 0.3), np.arange(4.0)))  # type: ignore[operator]


def test_bland_altman_holds_normal_differences() -> None:
    rng = np.random.default_rng(1)
    measured = rng.uniform(0, 1, 20_000)
    differences = rng.normal(0.1, 0.05, 20_000)
    limits = bland_altman(measured + differences, measured)
    assert limits.bias == pytest.approx(differences.mean())
    assert ((differences > limits.low) & (differences < limits.high)).mean() == pytest.approx(0.95, abs=0.005)
    assert abs(limits.slope) < 0.03
    assert bland_altman(0.5 * measured, measured).slope == pytest.approx(-2 / 3)
    assert np.isnan(bland_altman(np.array([1.0, 0.0]), np.array([0.0, 1.0])).slope)
