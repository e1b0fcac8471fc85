"""Stratified AUROC: a site effect is found out, biology survives, and patients without a pair are counted."""

import numpy as np
import pytest
from survivors import held_out

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.confounding import confounder_stratified_auroc


def cohort(seed: int = 0, n: int = 300) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    second = rng.random(n) < 0.5
    positive = rng.random(n) < np.where(second, 0.8, 0.2)
    return second, positive, np.where(second, "site B", "site A").tolist()


def test_a_prediction_that_knows_the_site_alone_is_chance_within_sites() -> None:
    second, positive, site = cohort()
    predicted = second + np.random.default_rng(1).normal(0, 0.3, len(second))
    result = confounder_stratified_auroc(predicted, positive, site, held_out(len(second)), n=199)
    assert result.plain > 0.75
    assert abs(result.stratified - 0.5) < 0.1
    assert abs(result.null_mean - result.plain) < 0.03
    assert result.p == 1 / 200


def test_biology_survives_stratification() -> None:
    second, positive, site = cohort(2)
    predicted = positive + np.random.default_rng(1).normal(0, 0.8, len(second))
    result = confounder_stratified_auroc(predicted, positive, site, held_out(len(second)), n=199)
    assert result.stratified > 0.75
    assert abs(result.plain - result.stratified) < 0.05


def test_one_stratum_changes_nothing_and_pairs_are_counted() -> None:
    _, positive, _ = cohort(3, 40)
    predicted, of = np.random.default_rng(0).normal(size=40).round(1), held_out(40, 1)
    result = confounder_stratified_auroc(predicted, positive, ["one"] * 40, of, n=19)
    assert result.plain == result.stratified == pytest.approx(auroc(predicted, positive))
    assert (result.p, result.share, result.without_pair) == (1.0, 1.0, {})
    assert result.n_pairs == positive.sum() * (~positive).sum()


def test_patients_without_a_pair_are_counted_by_stratum() -> None:
    positive = np.array([True, False, True, True, False, False])
    strata = ["a", "a", "b", "b", "c", "a"]
    result = confounder_stratified_auroc(np.arange(6.0), positive, strata, held_out(6, 1), n=9)
    assert result.without_pair == {"b": 2, "c": 1}
    assert (result.n_pairs, result.share, result.stratified) == (2, pytest.approx(2 / 9), 0.0)


def test_label_and_confounder_that_are_one_are_refused() -> None:
    positive = np.arange(12) < 6
    with pytest.raises(MetricError, match="cannot be told apart"):
        confounder_stratified_auroc(np.arange(12.0), positive, positive.astype(str).tolist(), held_out(12), n=9)
    with pytest.raises(DataError, match="strata of 1 patients for 12"):
        confounder_stratified_auroc(np.arange(12.0), positive, ["a"], held_out(12), n=9)
