"""Scores of classes agree with scikit-learn, and say what they do not define."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sklearn.metrics import balanced_accuracy_score, cohen_kappa_score, roc_auc_score

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.classes import (
    balanced_accuracy,
    expected_place,
    kappa,
    macro_auroc,
    place_spearman,
    quadratic_kappa,
)

METRICS = [macro_auroc, balanced_accuracy, kappa, quadratic_kappa, place_spearman]


def chances(seed: int, n: int = 60, k: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    place = rng.permutation(np.arange(n) % k)
    logits = rng.normal(size=(n, k)).round(1) + 1.5 * (place[:, None] == np.arange(k))
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), place


@given(st.integers(0, 1000))
def test_they_agree_with_scikit_learn(seed: int) -> None:
    predicted, place = chances(seed)
    said = predicted.argmax(axis=1)
    assert macro_auroc(predicted, place) == pytest.approx(roc_auc_score(place, predicted, multi_class="ovr"), abs=1e-12)
    assert balanced_accuracy(predicted, place) == pytest.approx(balanced_accuracy_score(place, said), abs=1e-12)
    assert kappa(predicted, place) == pytest.approx(cohen_kappa_score(place, said), abs=1e-12)
    median = (predicted.cumsum(axis=1) >= 0.5 - 1e-9).argmax(axis=1)
    oracle = cohen_kappa_score(place, median, weights="quadratic", labels=range(4))
    assert quadratic_kappa(predicted, place) == pytest.approx(oracle, abs=1e-12)
    assert place_spearman(predicted, place) == pytest.approx(spearmanr(expected_place(predicted), place)[0], abs=1e-12)


def test_two_classes_are_the_binary_case() -> None:
    predicted, place = chances(1, k=2)
    assert macro_auroc(predicted, place) == pytest.approx(roc_auc_score(place == 1, predicted[:, 1]), abs=1e-12)


def test_a_class_without_a_patient_is_left_out() -> None:
    predicted, place = chances(2)
    kept = place != 3
    of_three = np.mean([roc_auc_score(place[kept] == k, predicted[kept, k]) for k in range(3)])
    assert macro_auroc(predicted[kept], place[kept]) == pytest.approx(of_three, abs=1e-12)
    said = predicted[kept].argmax(axis=1)
    recall = np.mean([(said[place[kept] == k] == k).mean() for k in range(3)])
    assert balanced_accuracy(predicted[kept], place[kept]) == pytest.approx(recall)


def test_a_head_that_always_says_one_class_agrees_by_chance() -> None:
    _, place = chances(3)
    constant = np.tile([0.7, 0.1, 0.1, 0.1], (60, 1))
    assert (kappa(constant, place), quadratic_kappa(constant, place)) == (0.0, 0.0)
    assert (macro_auroc(constant, place), balanced_accuracy(constant, place)) == (0.5, 0.25)
    assert np.isnan(place_spearman(constant, place))


@pytest.mark.parametrize("metric", METRICS)
def test_one_class_defines_nothing(metric: object) -> None:
    predicted, _ = chances(4)
    with pytest.raises(MetricError):
        metric(predicted, np.zeros(60, dtype=int))  # type: ignore[operator]


@pytest.mark.parametrize("metric", METRICS)
def test_wrong_input_is_refused(metric: object) -> None:
    predicted, place = chances(5)
    with pytest.raises(DataError, match="there are 4 classes"):
        metric(predicted, place + 1)  # type: ignore[operator]
    with pytest.raises(DataError, match="not finite"):
        metric(np.where(predicted > 0.9, np.nan, predicted), place)  # type: ignore[operator]
