"""Two heads on the same patients: levels, power, symmetry, and metrics that ranks do not preserve."""

import numpy as np
import pytest
from survivors import held_out, survivors

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.agreement import pearson, spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.concordance import harrell_c
from stexpr.evaluate.slides.paired import HeadComparison, PairedTarget, compare_heads, compare_over_targets


def compared(seed: int, better: float, n: int = 199, replicates: int = 50) -> HeadComparison:
    rng = np.random.default_rng(seed)
    positive = np.arange(60) % 2 == 0
    heads = (10 * (rng.normal(size=60) + better * positive), rng.normal(size=60))
    return compare_heads(auroc, held_out(60), heads, positive, names=("bag", "color"), n=n, replicates=replicates)


def test_like_heads_differ_as_rarely_as_the_level_says() -> None:
    p = np.array([compared(seed, 0.0, 39, 1).test.p for seed in range(50)])
    assert 0.02 <= (p <= 0.1).mean() <= 0.2


def test_a_better_head_is_named_either_way_round() -> None:
    result = compared(1, 2.0)
    assert result.test.verdict == "bag beats color"
    assert result.test.difference == pytest.approx(result.a.mean - result.b.mean)
    assert 0 < result.interval.low < result.test.difference < result.interval.high
    assert "conditional on the trained models" in result.interval.kind
    positive, one, other = np.arange(60) % 2 == 0, np.arange(60) % 2 * -1.0, np.zeros(60)
    a = compare_heads(auroc, held_out(60), (one, other), positive, n=99, replicates=20)
    b = compare_heads(auroc, held_out(60), (other, one), positive, n=99, replicates=20)
    assert (a.test.difference, a.test.p, a.test.verdict) == (-b.test.difference, b.test.p, "A beats B")
    assert b.test.verdict == "B beats A"


def test_monotone_scales_do_not_matter() -> None:
    of = survivors(60, 3)
    other = of.log_hazard + np.random.default_rng(0).normal(size=60)
    truth, folds = (of.time, of.event), held_out(60)
    one = compare_heads(harrell_c, folds, (of.log_hazard, other), *truth, n=99, replicates=20)
    two = compare_heads(harrell_c, folds, (np.exp(of.log_hazard), 5 * other - 3), *truth, n=99, replicates=20)
    assert one.test == two.test
    assert one.interval == two.interval


def test_a_head_with_itself_shows_nothing() -> None:
    head, positive = np.random.default_rng(0).normal(size=30), np.arange(30) % 2 == 0
    result = compare_heads(auroc, held_out(30), (head, head.copy()), positive, n=49, replicates=20)
    assert (result.test.difference, result.test.p, result.test.verdict) == (0, 1, "no difference shown")


def test_values_are_swapped_where_the_metric_is_of_values() -> None:
    rng = np.random.default_rng(0)
    measured = rng.normal(size=60)
    heads = (measured + rng.normal(0, 0.2, 60), measured + rng.normal(0, 2, 60))
    with pytest.raises(MetricError, match="pass ranked=False"):
        compare_heads(pearson, held_out(60), heads, measured)
    result = compare_heads(pearson, held_out(60), heads, measured, ranked=False, n=99, replicates=20)
    assert result.test.verdict == "A beats B"

    def squared(predicted: np.ndarray, truth: np.ndarray) -> float:
        return float(np.mean((predicted - truth) ** 2))

    error = compare_heads(squared, held_out(60), heads, measured, ranked=False, greater=False, n=99, replicates=20)
    assert error.test.difference < 0
    assert error.test.verdict == "A beats B"


def test_a_fold_undefined_for_one_head_leaves_the_pair_undefined() -> None:
    measured = np.arange(30.0)
    collapsed = np.where(np.arange(30) % 3 == 0, 1.0, measured)
    result = compare_heads(spearman, held_out(30), (measured, collapsed), measured, n=9)
    assert np.isnan(result.test.p)
    assert result.test.verdict.startswith("undefined: fold fold 0")


def test_few_patients_are_not_testable_and_heads_must_match() -> None:
    positive = np.array([True, False, True, False])
    result = compare_heads(auroc, held_out(4, 1), (positive * 1.0, np.zeros(4)), positive, n=49)
    assert result.test.verdict == "not testable: n = 4, needs ≥ 6"
    with pytest.raises(DataError, match="one value for each patient"):
        compare_heads(auroc, held_out(4, 1), (np.zeros(4), np.zeros(3)), positive)


def over_targets(seed: int, effect: float, n: int = 40, targets: int = 3) -> list[PairedTarget]:
    """Targets of the same patients, whose labels and predictions go together; the second head knows less."""
    rng = np.random.default_rng(seed)
    hidden, noise = rng.normal(size=n), rng.normal(size=(2, n))
    found = []
    for _ in range(targets):
        positive = hidden + 0.3 * rng.normal(size=n) > 0.3
        a, b = (hidden * knows + noise[head] for head, knows in ((0, 0.5 + effect), (1, 0.5)))
        found.append(PairedTarget(auroc, held_out(n), (a, b), (positive,)))
    return found


def test_one_target_over_targets_is_the_pair_itself() -> None:
    (target,) = over_targets(1, 1.0, targets=1)
    alone = compare_heads(target.metric, target.held_out, target.predicted, *target.truth, n=199)
    together = compare_over_targets([target], n=199)
    assert together.difference == pytest.approx(alone.test.difference)
    assert together.p == pytest.approx(alone.test.p, abs=0.06)  # patients stand in another order, so other swaps are drawn


def test_targets_change_hands_together_so_that_like_heads_differ_as_rarely_as_the_level_says() -> None:
    p = np.array([compare_over_targets(over_targets(seed, 0.0), n=99).p for seed in range(60)])
    assert (p <= 0.1).mean() <= 0.2
    found = compare_over_targets(over_targets(0, 2.0, n=120), names=("new", "old"), n=199)
    assert found.verdict == "new beats old"
    assert found.n_patients == 120


def test_an_undefined_target_leaves_the_mean_undefined() -> None:
    first, second = over_targets(2, 1.0, targets=2)
    none = PairedTarget(auroc, second.held_out, second.predicted, (np.zeros(40, dtype=bool),))
    found = compare_over_targets([first, none])
    assert np.isnan(found.p)
    assert found.verdict.startswith("undefined: fold fold 0: 0 positive")
    with pytest.raises(MetricError, match="no target"):
        compare_over_targets([])
