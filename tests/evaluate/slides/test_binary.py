"""Ranking positive before negative patients: scikit-learn's values, and the laws of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.binary import auprc, auroc

PATIENTS = st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
    lambda patients: len({label for _, label in patients}) == 2
)


def arrays(patients: list[tuple[int, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(score) for score, _ in patients]), np.array([label for _, label in patients])


@settings(deadline=None)
@given(PATIENTS)
def test_values_are_scikit_learns(patients: list[tuple[int, bool]]) -> None:
    predicted, positive = arrays(patients)
    assert auroc(predicted, positive) == pytest.approx(roc_auc_score(positive, predicted), abs=1e-12)
    assert auprc(predicted, positive) == pytest.approx(average_precision_score(positive, predicted), abs=1e-12)


@settings(deadline=None)
@given(PATIENTS, st.randoms(use_true_random=False))
def test_ranks_alone_matter(patients: list[tuple[int, bool]], random: object) -> None:
    predicted, positive = arrays(patients)
    order = np.array(random.sample(range(len(patients)), len(patients)))  # type: ignore[attr-defined]
    for metric in (auroc, auprc):
        score = metric(predicted, positive)
        assert metric(np.exp(predicted), positive) == score
        assert metric(predicted[order], positive[order]) == pytest.approx(score, abs=1e-12)
    assert auroc(-predicted, positive) == pytest.approx(1 - auroc(predicted, positive))
    assert auroc(predicted, ~positive) == pytest.approx(1 - auroc(predicted, positive))


def test_a_constant_prediction_is_chance() -> None:
    positive = np.array([True, False, False, False])
    assert auroc(np.ones(4), positive) == 0.5
    assert auprc(np.ones(4), positive) == 0.25


@pytest.mark.parametrize("metric", [auroc, auprc])
def test_one_label_or_no_number_is_refused(metric: object) -> None:
    with pytest.raises(MetricError, match="3 positive and 0 negative"):
        metric(np.arange(3.0), np.ones(3, dtype=bool))  # type: ignore[operator]
    with pytest.raises(DataError, match="not finite"):
        metric(np.array([1.0, np.nan]), np.array([True, False]))  # type: ignore[operator]
