"""Hazard ratios: lifelines' values, a known truth, and likelihoods without maximum."""

import numpy as np
import pandas as pd
import pytest
from survivors import held_out, survivors

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.hazard_ratio import hazard_ratio


@pytest.mark.parametrize("adjusted", [False, True])
def test_values_are_lifelines(adjusted: bool) -> None:
    lifelines = pytest.importorskip("lifelines", reason="the oracle lifelines is not installed (extra: oracles)")
    of, folds = survivors(150, 1), held_out(150)
    age = np.random.default_rng(2).normal(60, 10, 150)
    covariates = pd.DataFrame({"age": age}) if adjusted else None
    result = hazard_ratio(of.log_hazard, of.time, of.event, folds, covariates)
    table = pd.DataFrame({"t": of.time, "e": of.event, "fold": folds.folds, "x": of.log_hazard, "age": age})
    table["x"] = table.groupby("fold")["x"].transform(lambda x: (x - x.mean()) / x.std())
    exact = {"precision": 1e-12, "r_precision": 1e-14}  # its defaults stop at 1e-4 of the ratio
    fitted = lifelines.CoxPHFitter().fit(
        table if adjusted else table.drop(columns="age"), "t", "e", strata="fold", fit_options=exact
    )
    row = fitted.summary.loc["x"]
    expected = row[["exp(coef)", "exp(coef) lower 95%", "exp(coef) upper 95%", "p"]].to_numpy()
    np.testing.assert_allclose([result.ratio, result.low, result.high, result.p], expected.astype(float), rtol=1e-6)
    assert (result.n_patients, result.n_events) == (150, of.event.sum())
    if adjusted:
        assert result.covariates["age"] == pytest.approx(fitted.summary.loc["age", "exp(coef)"], rel=1e-5)
        assert result.adjusted_for == ("age",)


def test_the_planted_ratio_comes_back_whatever_the_folds_scale() -> None:
    of, folds = survivors(1500, 4, decimals=4, effect=0.7), held_out(1500)
    result = hazard_ratio(of.log_hazard, of.time, of.event, folds)
    assert result.low < np.exp(0.7) < result.high
    rescaled = of.log_hazard.copy()
    for scale, rows in enumerate(folds.rows.values(), 1):
        rescaled[rows] = 10 * scale + scale * rescaled[rows]
    assert hazard_ratio(rescaled, of.time, of.event, folds).ratio == pytest.approx(result.ratio)
    assert hazard_ratio(-of.log_hazard, of.time, of.event, folds).ratio == pytest.approx(1 / result.ratio)


def test_a_confounded_prediction_loses_its_ratio() -> None:
    of, folds = survivors(1000, 5, decimals=4), held_out(1000)
    noisy = of.log_hazard + np.random.default_rng(0).normal(size=1000)
    assert hazard_ratio(noisy, of.time, of.event, folds).low > 1.3
    adjusted = hazard_ratio(noisy, of.time, of.event, folds, pd.DataFrame({"known": of.log_hazard}))
    assert adjusted.low < 1 < adjusted.high


def test_what_has_no_ratio_is_refused() -> None:
    of, folds = survivors(30, 1), held_out(30)
    with pytest.raises(MetricError, match="0 events among 30 patients"):
        hazard_ratio(of.log_hazard, of.time, np.zeros(30, dtype=bool), folds)
    with pytest.raises(MetricError, match="must vary"):
        hazard_ratio(np.array([int(name[-1]) * 0.1 for name in folds.folds]), of.time, of.event, folds)
    with pytest.raises(MetricError, match=r"\(twin\) must vary and not determine each other"):
        hazard_ratio(of.log_hazard, of.time, of.event, held_out(30, 1), pd.DataFrame({"twin": 2 * of.log_hazard}))
    with pytest.raises(DataError, match="missing in stage"):
        hazard_ratio(of.log_hazard, of.time, of.event, folds, pd.DataFrame({"stage": ["II"] * 30, "age": range(30)}))
    with pytest.raises(DataError, match="covariates of 3 patients for 30"):
        hazard_ratio(of.log_hazard, of.time, of.event, folds, pd.DataFrame({"age": [1, 2, 3]}))


def test_a_group_without_events_is_named() -> None:
    time, event = np.arange(1.0, 21.0), np.arange(20) < 10
    with pytest.raises(MetricError, match="no maximum"):
        hazard_ratio(np.repeat([1.0, 0.0], 10), time, event, held_out(20, 1))
