"""Intervals hold what they promise, p-values are as rare as they say, and lost replicates are counted."""

import math
from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
import pytest
from survivors import held_out, survivors

from stexpr.errors import DataError
from stexpr.evaluate.slides.agreement import spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.censoring import Censoring
from stexpr.evaluate.slides.concordance import harrell_c, uno_c
from stexpr.evaluate.slides.held_out import score_folds
from stexpr.evaluate.slides.horizons import brier_score
from stexpr.evaluate.slides.paired import compare_heads
from stexpr.evaluate.slides.replicates import CELLS
from stexpr.evaluate.slides.resampling import BOOTSTRAP, bootstrap_interval, permutation_p


def patients(seed: int, n: int, effect: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    positive = rng.permutation(np.arange(n) % 3 == 0)
    return rng.normal(size=n) + effect * positive, positive


def test_the_interval_holds_the_true_auroc_about_as_often_as_it_says() -> None:
    truth = 0.5 * (1 + math.erf(1 / 2))  # normal scores one SD apart
    of, inside = held_out(60, 2), 0
    for seed in range(60):
        predicted, positive = patients(seed, 60, 1.0)
        interval = bootstrap_interval(auroc, of, predicted, positive, strata=positive.astype(str).tolist(), n=100)
        inside += interval.low <= truth <= interval.high
    assert 0.85 <= inside / 60 <= 1


def test_the_interval_says_what_it_covers_and_repeats_itself() -> None:
    predicted, positive = patients(1, 60, 1.0)
    of = held_out(60)
    one, again, other = (bootstrap_interval(auroc, of, predicted, positive, n=200, seed=seed) for seed in (0, 0, 1))
    assert one == again != other
    assert one.kind == BOOTSTRAP
    assert one.low < score_folds(auroc, of, predicted, positive).mean < one.high


def test_a_rare_label_is_lost_unless_drawn_within_labels() -> None:
    of, predicted = held_out(30), np.arange(30.0)
    positive = np.isin(np.arange(30), [3, 10, 20])  # one in each fold
    lost = bootstrap_interval(auroc, of, predicted, positive, n=200)
    assert np.isnan(lost.low)
    assert "of 200 bootstrap replicates undefined; draw within labels" in lost.kind
    kept = bootstrap_interval(auroc, of, predicted, positive, n=200, strata=positive.astype(str).tolist())
    assert kept.low < kept.high
    some = bootstrap_interval(auroc, of, predicted * 7 % 30, np.arange(30) < 9, n=400)
    assert some.kind.endswith("of 400 replicates undefined")
    assert not np.isnan(some.low)


def test_few_patients_or_no_score_have_no_interval() -> None:
    of = bootstrap_interval(auroc, held_out(9), np.arange(9.0), np.arange(9) % 2 == 0)
    assert (np.isnan(of.low), of.kind) == (True, "none: 9 patients, a bootstrap needs 10")
    of = bootstrap_interval(auroc, held_out(12), np.arange(12.0), np.zeros(12, dtype=bool))
    assert of.kind == "none: the score is undefined in every fold"
    with pytest.raises(DataError, match="strata of 2 patients"):
        bootstrap_interval(auroc, held_out(12), np.arange(12.0), np.arange(12) % 2 == 0, strata=["a", "b"])


def test_a_draw_repeats_patients_whole_with_their_own_truth() -> None:
    of = held_out(30)

    def mismatch(predicted: np.ndarray, *truth: np.ndarray) -> float:
        assert all((predicted == column).all() for column in truth)
        assert len(set((predicted % 3).tolist())) == 1  # of one fold
        return float(len(np.unique(predicted)))

    number = np.arange(30.0)
    interval = bootstrap_interval(mismatch, of, number, number, number, n=50)
    assert interval.high < 9  # of ten patients, about 6.5 are drawn


def test_p_is_the_share_of_all_shuffles() -> None:
    predicted, positive = np.array([4.0, 3.0, 1.0, 2.0, 0.0]), np.array([True, True, False, False, False])
    of = held_out(5, 1)
    observed = auroc(predicted, positive)
    exact = np.mean([auroc(predicted[list(order)], positive) >= observed - 1e-12 for order in permutations(range(5))])
    assert exact == pytest.approx(0.1)
    assert permutation_p(auroc, of, predicted, positive, n=2000) == pytest.approx(exact, abs=0.02)


def test_p_is_uniform_without_effect_and_small_with_one() -> None:
    of = held_out(40, 2)
    none = np.array([permutation_p(auroc, of, *patients(seed, 40, 0.0), n=99) for seed in range(60)])
    assert 0.01 <= (none <= 0.1).mean() <= 0.2
    assert none.min() >= 0.01
    predicted, positive = patients(0, 40, 3.0)
    assert permutation_p(auroc, of, predicted, positive, n=99) == 0.01
    assert permutation_p(auroc, of, -predicted, positive, n=99) == 1.0
    assert permutation_p(auroc, of, -predicted, positive, greater=False, n=99) == 0.01


def test_differences_between_folds_are_no_effect() -> None:
    rng = np.random.default_rng(3)
    second = np.arange(80) % 2 == 1
    positive = rng.random(80) < np.where(second, 0.8, 0.2)
    predicted = rng.normal(size=80) + 5 * second
    of = held_out(80, 2)
    assert auroc(predicted, positive) > 0.7
    assert permutation_p(auroc, of, predicted, positive, n=199) > 0.05


def test_survival_scores_take_their_folds_training_patients() -> None:
    of, people, training = held_out(90), survivors(90, 1), survivors(300, 2)
    truth = (people.time, people.event)
    assert permutation_p(harrell_c, of, people.log_hazard, *truth, n=99) == 0.01
    censoring = Censoring.of(training.time, training.event)
    metrics = {fold: partial(uno_c, censoring=censoring, until=1.0) for fold in of.rows}
    interval = bootstrap_interval(metrics, of, people.log_hazard, *truth, n=100)
    assert interval.low < score_folds(metrics, of, people.log_hazard, *truth).mean < interval.high
    survival = np.exp(-np.exp(people.log_hazard)[:, None] * np.array([0.5]))
    brier = lambda s, t, e: float(brier_score(s, t, e, np.array([0.5]), censoring)[0])  # noqa: E731
    assert permutation_p(brier, of, survival, *truth, greater=False, n=99) == 0.01


def test_an_undefined_score_has_no_p() -> None:
    assert np.isnan(permutation_p(auroc, held_out(12), np.arange(12.0), np.zeros(12, dtype=bool), n=9))


@pytest.mark.parametrize("metric", [auroc, spearman])
def test_all_replicates_at_once_give_the_numbers_of_a_loop(metric: Callable[..., float]) -> None:
    of = held_out(47, 3)
    predicted, positive = patients(5, 47, 0.7)
    truth = positive if metric is auroc else np.random.default_rng(6).normal(size=47).round(1)
    predicted = predicted.round(1)  # so that values tie

    def loop(*arrays: np.ndarray) -> float:
        return metric(*arrays)

    strata = positive.astype(str).tolist()
    one, other = (bootstrap_interval(kind, of, predicted, truth, strata=strata, n=300) for kind in (metric, loop))
    assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0 if metric is auroc else 1e-12)
    assert permutation_p(metric, of, predicted, truth, n=300) == permutation_p(loop, of, predicted, truth, n=300)
    heads = (predicted, np.random.default_rng(7).normal(size=47).round(1))
    first, second = (compare_heads(kind, of, heads, truth, n=300, replicates=300, strata=strata) for kind in (metric, loop))
    assert first.test.p == second.test.p
    assert (first.interval.low, first.interval.high) == pytest.approx((second.interval.low, second.interval.high), abs=1e-12)


def test_replicates_that_lose_a_label_are_undefined_at_once_and_one_by_one() -> None:
    of, predicted, positive = held_out(30), np.arange(30.0) * 7 % 30, np.arange(30) < 9
    one, other = (bootstrap_interval(kind, of, predicted, positive, n=400) for kind in (auroc, lambda *arrays: auroc(*arrays)))
    assert one == other
    assert "replicates undefined" in one.kind


def test_many_patients_are_taken_in_parts() -> None:
    of, (predicted, positive) = held_out(3000, 1), patients(8, 3000, 0.5)
    assert CELLS < 3000 * 2 * 999
    interval = bootstrap_interval(auroc, of, predicted, positive, n=999)
    assert interval.low < auroc(predicted, positive) < interval.high
