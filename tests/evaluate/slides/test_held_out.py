"""Scores within folds: a mean over folds, the reason where there is none, pooled values apart."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from survivors import held_out

from stexpr.errors import DataError, LeakageError
from stexpr.evaluate.slides.agreement import spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.held_out import HeldOut, score_folds


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.lists(st.floats(0.1, 10), min_size=3, max_size=3))
def test_the_scale_of_a_fold_does_not_matter(seed: int, scales: list[float]) -> None:
    rng = np.random.default_rng(seed)
    predicted, positive, of = rng.normal(size=30), np.arange(30) % 2 == 0, held_out(30)
    rescaled = predicted.copy()
    for scale, rows in zip(scales, of.rows.values(), strict=True):
        rescaled[rows] = scale * predicted[rows] + 7 * scale
    assert score_folds(auroc, of, rescaled, positive).mean == score_folds(auroc, of, predicted, positive).mean


def test_pooling_mixes_folds_and_stands_apart() -> None:
    positive = np.array([False, True, False, True])
    of = HeldOut(("a", "b", "c", "d"), ("1", "1", "2", "2"))
    scores = score_folds(auroc, of, np.array([0.0, 1.0, 10.0, 11.0]), positive)
    assert (scores.mean, scores.pooled, scores.values) == (1.0, 0.75, {"1": 1.0, "2": 1.0})
    assert str(scores) == "1.000 (mean of 2 folds; pooled 0.750)"


def test_a_fold_without_a_positive_says_so_and_is_left_out() -> None:
    positive = np.array([False, True, False, False])
    scores = score_folds(auroc, HeldOut(("a", "b", "c", "d"), ("1", "1", "2", "2")), np.arange(4.0), positive)
    assert scores.mean == 1.0
    assert np.isnan(scores.values["2"])
    assert scores.undefined == {"2": "0 positive and 2 negative patients; at least one of each is needed"}
    assert "fold 2: 0 positive" in str(scores)


def test_a_collapsed_fold_leaves_the_mean_undefined() -> None:
    predicted = np.array([1.0, 2.0, 5.0, 5.0])
    scores = score_folds(spearman, HeldOut(("a", "b", "c", "d"), ("1", "1", "2", "2")), predicted, np.arange(4.0))
    assert scores.values["1"] == pytest.approx(1.0)
    assert np.isnan(scores.mean)
    assert "constant" in scores.undefined["2"]


def test_all_labels_equal_leave_no_score() -> None:
    scores = score_folds(auroc, held_out(6), np.arange(6.0), np.ones(6, dtype=bool))
    assert np.isnan(scores.mean)
    assert np.isnan(scores.pooled)
    assert len(scores.undefined) == 3


def test_a_fold_may_have_a_metric_of_its_own() -> None:
    of, predicted = held_out(6), np.arange(6.0)
    metrics = {f"fold {i}": lambda values, i=i: float(i) for i in range(3)}
    scores = score_folds(metrics, of, predicted)
    assert scores.values == {"fold 0": 0.0, "fold 1": 1.0, "fold 2": 2.0}
    assert np.isnan(scores.pooled)
    with pytest.raises(DataError, match="no metric for fold 'fold 2'"):
        score_folds({"fold 0": len, "fold 1": len}, of, predicted)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(LeakageError, match=r"1 patients stand twice \(first: 'a'\)"):
        HeldOut(("a", "b", "a"), ("1", "1", "2"))
    with pytest.raises(DataError, match="2 patients but 1 folds"):
        HeldOut(("a", "b"), ("1",))
    with pytest.raises(DataError, match="0 patients"):
        HeldOut((), ())
    with pytest.raises(DataError, match=r"not finite for 1 of 6 patients \(first: row 2\)"):
        score_folds(auroc, held_out(6), np.array([0, 1, np.nan, 3, 4, 5]), np.arange(6) % 2 == 0)
    with pytest.raises(DataError, match="3 rows for 6 patients"):
        score_folds(auroc, held_out(6), np.arange(6.0), np.array([True, False, True]))
