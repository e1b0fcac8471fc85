"""Patients who are ranked perfectly do not make an AUROC certain: the interval of a perfect one holds what it promises."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import binomtest, norm
from survivors import held_out, survivors

from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.classes import balanced_accuracy
from stexpr.evaluate.slides.concordance import harrell_c
from stexpr.evaluate.slides.held_out import HeldOut, score_folds
from stexpr.evaluate.slides.resampling import BOOTSTRAP, bootstrap_interval
from stexpr.evaluate.slides.separation import EXACT, separated_interval

SIZES = st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=5)


def folds(sizes: list[tuple[int, int]]) -> tuple[HeldOut, np.ndarray]:
    """Patients of as many folds, some positive and some negative in each."""
    positive = np.concatenate([np.arange(n + m) < n for n, m in sizes])
    of = [f"fold {i}" for i, (n, m) in enumerate(sizes) for _ in range(n + m)]
    return HeldOut(tuple(f"p{i}" for i in range(len(of))), tuple(of)), positive


@pytest.mark.parametrize("n", [1, 2, 5, 20])
def test_of_single_pairs_it_is_the_interval_of_clopper_and_pearson(n: int) -> None:
    of, positive = folds([(1, 1)] * n)
    found = separated_interval(dict.fromkeys(of.rows, 1.0), of.rows, positive)
    oracle = binomtest(n, n).proportion_ci(0.95, method="exact")
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES)
def test_the_bound_is_the_least_mean_that_still_ranks_all_pairs_once_in_forty(sizes: list[tuple[int, int]]) -> None:
    of, positive = folds(sizes)
    found = separated_interval(dict.fromkeys(of.rows, 1.0), of.rows, positive)
    k = np.array([min(pair) for pair in sizes])
    solved = minimize(
        lambda chance: chance.mean(),
        np.full(len(k), 0.9),
        jac=lambda chance: np.full(len(k), 1 / len(k)),
        bounds=[(1e-9, 1)] * len(k),
        constraints={"type": "ineq", "fun": lambda c: (k * np.log(c)).sum() - np.log(0.025), "jac": lambda c: k / c},
        options={"maxiter": 500, "ftol": 1e-12},
    )
    assume(solved.success)
    assert found.low == pytest.approx(solved.fun, abs=1e-5)
    assert (found.high, found.kind) == (1.0, EXACT)


@settings(deadline=None, max_examples=40)
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_turned_around_it_is_turned_around_and_more_patients_make_it_narrower(sizes: list[tuple[int, int]], seed: int) -> None:
    ends = np.random.default_rng(seed).integers(0, 2, len(sizes)).astype(float)
    of, positive = folds(sizes)
    one, other = (
        separated_interval(dict(zip(of.rows, values.tolist(), strict=True)), of.rows, positive) for values in (ends, 1 - ends)
    )
    assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)
    assert 0 <= one.low <= ends.mean() <= one.high <= 1
    assert one.low < one.high
    of, positive = folds([(n + 1, m + 1) for n, m in sizes])
    more = separated_interval(dict(zip(of.rows, ends.tolist(), strict=True)), of.rows, positive)
    assert one.low <= more.low + 1e-12
    assert more.high <= one.high + 1e-12


@pytest.mark.parametrize("draw", ["normal", "unlike spreads", "two values"])
def test_patients_of_an_auroc_below_the_bound_are_hardly_ever_separated(draw: str) -> None:
    n, m, rng = 4, 7, np.random.default_rng(0)
    bound = separated_interval({"f": 1.0}, {"f": np.arange(n + m)}, np.arange(n + m) < n).low
    assert bound == pytest.approx(0.025**0.25)
    size, spread = 40_000, 8.0 if draw == "unlike spreads" else 1.0
    shift = norm.ppf(bound) * np.hypot(1, spread)
    above, below = spread * rng.normal(size=(size, n)) + shift, rng.normal(size=(size, m))
    if draw == "two values":  # P(above > below) + P(level) / 2 is the bound, too
        above, below = rng.random((size, n)) < 0.3, rng.random((size, m)) < 0.3 + 1 - 2 * bound
    separated = (above.min(axis=1) > below.max(axis=1)).mean()
    assert separated <= 0.025


def test_a_perfect_auroc_in_few_patients_is_not_certain() -> None:
    of, positive = held_out(12), np.arange(12) % 2 == 0
    strata = positive.astype(str).tolist()
    right = bootstrap_interval(auroc, of, positive.astype(float), positive, strata=strata, n=50)
    assert (right.low, right.high, right.kind) == (pytest.approx(0.025 ** (1 / 6)), 1.0, EXACT)
    wrong = bootstrap_interval(auroc, of, -positive.astype(float), positive, n=50)
    assert np.isnan(wrong.low)
    assert "undefined; draw within labels" in wrong.kind  # that reason comes first
    many = bootstrap_interval(auroc, held_out(600), np.arange(600) % 2.0, np.arange(600) % 2 == 1, n=50)
    assert 0.98 < many.low < many.high == 1
    mixed = np.where(np.arange(12) % 3 == 0, -1, 1) * positive  # one fold ranks the wrong way, always
    both = bootstrap_interval(auroc, of, mixed.astype(float), positive, strata=strata, n=50)
    assert score_folds(auroc, of, mixed.astype(float), positive).mean == pytest.approx(2 / 3)
    assert both.low < 2 / 3 < both.high < 1


def test_other_scores_that_no_draw_changes_have_no_interval() -> None:
    of, people = held_out(12, 1), survivors(12, 0, censoring=0)
    found = bootstrap_interval(harrell_c, of, -people.time, people.time, np.ones(12, dtype=bool), n=50)
    assert np.isnan(found.low)
    assert found.kind == "none: however the 12 patients are drawn, they score alike"
    place = np.arange(12) % 2
    chances = np.stack([1 - place, place], axis=1).astype(float)
    found = bootstrap_interval(balanced_accuracy, of, chances, place, strata=place.astype(str).tolist(), n=50)
    assert np.isnan(found.low)


def test_a_constant_prediction_is_certain_to_rank_by_chance() -> None:
    of, positive = held_out(30), np.arange(30) % 2 == 0
    fold_means = np.arange(30) % 3 / 10
    found = bootstrap_interval(auroc, of, fold_means, positive, strata=positive.astype(str).tolist(), n=50)
    assert (found.low, found.high, found.kind) == (0.5, 0.5, BOOTSTRAP)
    place = positive.astype(int)
    found = bootstrap_interval(
        balanced_accuracy, of, np.tile([0.6, 0.4], (30, 1)), place, strata=place.astype(str).tolist(), n=50
    )
    assert (found.low, found.high) == (0.5, 0.5)


def test_what_is_not_perfect_is_left_to_the_bootstrap() -> None:
    of, positive = folds([(2, 3)])
    assert separated_interval({"fold 0": 5 / 6}, of.rows, positive) is None
