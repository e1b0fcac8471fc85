"""The log-rank test: lifelines' and statsmodels' values, and what a stratum changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from survivors import survivors

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.logrank import log_rank


def groups(seed: int, n: int, of: int) -> list[str]:
    return [f"group {i}" for i in np.random.default_rng(seed).integers(0, of, n)]


@pytest.mark.parametrize("k", [2, 3])
def test_unstratified_values_are_lifelines(k: int) -> None:
    lifelines = pytest.importorskip("lifelines.statistics", reason="the oracle lifelines is not installed (extra: oracles)")
    for seed in range(4):
        of, named = survivors(90, seed), groups(seed, 90, k)
        expected = lifelines.multivariate_logrank_test(of.time, named, of.event)
        result = log_rank(of.time, of.event, named)
        assert result.chi2 == pytest.approx(expected.test_statistic, abs=1e-8)
        assert result.p == pytest.approx(expected.p_value, abs=1e-8)
        assert result.freedom == k - 1
        assert result.expected.sum() == pytest.approx(result.observed.sum())


@pytest.mark.parametrize("seed", range(4))
def test_stratified_values_are_statsmodels(seed: int) -> None:
    from statsmodels.duration.survfunc import survdiff

    of, named, folds = survivors(90, seed), groups(seed, 90, 3), groups(seed + 50, 90, 4)
    chi2, p = survdiff(of.time, of.event.astype(int), np.array(named), strata=np.array(folds))
    result = log_rank(of.time, of.event, named, folds)
    assert (result.chi2, result.p) == (pytest.approx(chi2, abs=1e-8), pytest.approx(p, abs=1e-8))


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_time_may_be_stretched_within_a_fold(seed: int) -> None:
    of, named = survivors(30, seed), [f"g{i % 2}" for i in range(30)]
    folds = [str(i // 2 % 3) for i in range(30)]
    stretched = of.time ** (1 + np.array(folds, dtype=float))
    one, other = (log_rank(time, of.event, named, folds) for time in (of.time, stretched))
    assert one.chi2 == pytest.approx(other.chi2)
    renamed = log_rank(of.time, of.event, [{"g0": "b", "g1": "a"}[name] for name in named], folds)
    assert renamed.p == pytest.approx(one.p)


def test_folds_unlike_in_risk_do_not_pass_for_groups() -> None:
    rng = np.random.default_rng(0)
    late = np.repeat([False, True], 200)
    time = rng.exponential(np.where(late, 10.0, 1.0))
    high = rng.random(400) < np.where(late, 0.2, 0.8)  # the cut-off of one fold calls more patients high
    named = np.where(high, "high", "low").tolist()
    event = np.ones(400, dtype=bool)
    assert log_rank(time, event, named).p < 1e-10
    assert log_rank(time, event, named, late.astype(str).tolist()).p > 0.01


def test_groups_must_meet() -> None:
    time, event = np.array([1.0, 2.0, 3.0, 4.0]), np.array([True, True, False, True])
    with pytest.raises(MetricError, match="'a' are never at risk together"):
        log_rank(time, event, ["a"] * 4)
    with pytest.raises(MetricError, match="never at risk together"):
        log_rank(time, event, ["a", "a", "b", "b"], ["1", "1", "2", "2"])
    with pytest.raises(DataError, match="3 groups"):
        log_rank(time, event, ["a", "b", "a"])
