"""Metrics against scipy and scikit-learn, their laws, and what they refuse."""

import tracemalloc
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stexpr.errors import MetricError
from stexpr.evaluate.metrics import (
    constant_per_gene,
    mae_per_gene,
    pearson_per_gene,
    r2_per_gene,
    rmse_per_gene,
    spearman_per_gene,
)

CORRELATIONS = [pearson_per_gene, spearman_per_gene]
PAIRS = st.tuples(
    arrays(np.float64, (9, 3), elements=st.integers(-50, 50).map(lambda n: n / 4)),
    arrays(np.float64, (9, 3), elements=st.integers(-50, 50).map(lambda n: n / 4)),
)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Users run without shape checks: what they see for unlike shapes is our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(params=[40, 1500], ids=["one block of rows", "several"])
def pair(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    measured = rng.poisson(1.5, (request.param, 7)).astype(np.float64)  # ties, as in counts
    return np.round(0.4 * measured + rng.normal(size=measured.shape), 1) + np.array([0, 1e3, -5, 0, 0, 2, 1]), measured


def test_pearson_equals_scipy(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, measured = pair
    expected = [scipy.stats.pearsonr(predicted[:, i], measured[:, i])[0] for i in range(7)]
    np.testing.assert_allclose(pearson_per_gene(predicted, measured), expected, rtol=0, atol=1e-10)


def test_pearson_of_a_drifting_gene_keeps_its_digits() -> None:
    # the first rows, whose mean is the shift of the one-pass sums, lie far from the mean of all
    rng = np.random.default_rng(0)
    measured = np.concatenate([np.zeros(512), np.full(3000, 1e6)])[:, None] + rng.normal(size=(3512, 1))
    predicted = measured + rng.normal(size=measured.shape) * 1e5
    expected = scipy.stats.pearsonr(predicted[:, 0], measured[:, 0])[0]
    np.testing.assert_allclose(pearson_per_gene(predicted, measured), [expected], rtol=0, atol=1e-10)


@pytest.mark.parametrize("metric", CORRELATIONS)
def test_genes_of_all_sizes_side_by_side(metric: object) -> None:
    # more genes than one block holds; means up to 1e9 SDs, where sums about 0 would cancel; values whose squares underflow
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(700, 300))
    size = 10.0 ** rng.integers(0, 10, 300)
    predicted, measured = spread + size, 0.5 * spread + rng.normal(size=spread.shape) - size[::-1]
    predicted[:, 5], measured[:, 290] = 1e8 / 3, 0.0
    predicted[:, 7] *= 1e-100
    rare = np.zeros(700)
    rare[650] = 4.0
    predicted[:, 299] = rare
    scipys = {pearson_per_gene: scipy.stats.pearsonr, spearman_per_gene: scipy.stats.spearmanr}[metric]  # type: ignore[index]
    varies = np.setdiff1d(np.arange(300), [5, 290])
    expected = np.full(300, np.nan)
    # scipy too rounds at means of 1e9 SDs; 128-bit differences from the mean do not
    centered = [np.asarray((v := x.astype(np.longdouble)) - v.mean(axis=0), np.float64) for x in (predicted, measured)]
    expected[varies] = [scipys(centered[0][:, i], centered[1][:, i])[0] for i in varies]
    np.testing.assert_allclose(metric(predicted, measured), expected, rtol=0, atol=1e-10)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_rounding_is_constant_and_a_little_more_is_not(dtype: type) -> None:
    rng = np.random.default_rng(0)
    step = np.finfo(dtype).eps
    steps = np.r_[0, 16, rng.integers(0, 17, 998)], np.r_[0, 18, rng.integers(0, 17, 998)]
    predicted = (1 + np.stack(steps, axis=1) * step).astype(dtype)  # within [1, 2) a step is eps
    measured = rng.normal(size=(1000, 2)).astype(dtype)
    for pair in ((predicted, measured), (measured, predicted), (-predicted, measured)):
        assert np.isnan(pearson_per_gene(*pair)).tolist() == [True, False]


def test_many_genes_need_little_memory() -> None:
    predicted, measured = np.random.default_rng(0).normal(size=(2, 1000, 2000)).astype(np.float32)
    predicted += 100  # no gene's sums about 0 are sound
    for metric in CORRELATIONS:
        tracemalloc.start()
        metric(predicted, measured)
        assert tracemalloc.get_traced_memory()[1] < predicted.nbytes  # a float64 copy is twice that
        tracemalloc.stop()


def test_spearman_equals_scipy_with_ties(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, measured = pair
    expected = [scipy.stats.spearmanr(predicted[:, i], measured[:, i])[0] for i in range(7)]
    np.testing.assert_allclose(spearman_per_gene(predicted, measured), expected, rtol=0, atol=1e-10)


def test_errors_equal_scikit_learn(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, measured = pair
    raw = {"multioutput": "raw_values"}
    close = {"rtol": 0, "atol": 1e-10}
    np.testing.assert_allclose(
        rmse_per_gene(predicted, measured), sklearn.metrics.root_mean_squared_error(measured, predicted, **raw), rtol=1e-12
    )
    np.testing.assert_allclose(
        mae_per_gene(predicted, measured), sklearn.metrics.mean_absolute_error(measured, predicted, **raw), rtol=1e-12
    )
    bounded = predicted - np.array([0, 1e3, -5, 0, 0, 2, 1])
    np.testing.assert_allclose(
        r2_per_gene(bounded, measured, measured.mean(axis=0)), sklearn.metrics.r2_score(measured, bounded, **raw), **close
    )


def test_r2_is_against_the_training_mean() -> None:
    measured = np.array([[1.0], [3.0]])
    assert r2_per_gene(np.full((2, 1), 0.5), measured, np.array([0.5]))[0] == 0
    assert r2_per_gene(measured, measured, np.array([0.5]))[0] == 1
    assert np.isnan(r2_per_gene(measured, np.full((2, 1), 0.5), np.array([0.5]))[0])


@pytest.mark.parametrize("metric", CORRELATIONS)
@pytest.mark.parametrize("side", ["predicted", "measured"])
def test_a_constant_gene_is_nan_in_its_place(metric: object, side: str) -> None:
    rng = np.random.default_rng(0)
    both = {name: rng.normal(size=(20, 3)) for name in ("predicted", "measured")}
    both[side][:, 1] = 0.1 + 0.2
    result = metric(**both)  # type: ignore[operator]
    assert np.isnan(result).tolist() == [False, True, False]


@pytest.mark.parametrize("metric", CORRELATIONS)
def test_a_collapsed_network_does_not_score_its_rounding(metric: object) -> None:
    rng = np.random.default_rng(0)
    steps = rng.integers(0, 4, (50, 1))
    predicted = (np.float32(1.7) + steps * np.spacing(np.float32(1.7))).astype(np.float32)
    assert np.isnan(metric(predicted, rng.normal(size=(50, 1)).astype(np.float32)))[0]  # type: ignore[operator]


def test_a_small_but_real_spread_is_not_constant() -> None:
    values = (1.0 + 1e-4 * np.arange(5, dtype=np.float32))[:, None].astype(np.float32)
    assert not constant_per_gene(values)[0]


@settings(deadline=None, max_examples=60)
@given(PAIRS, st.floats(0.1, 20), st.floats(-30, 30))
@pytest.mark.parametrize("metric", CORRELATIONS)
def test_correlation_laws(metric: object, pair: tuple[np.ndarray, np.ndarray], scale: float, shift: float) -> None:
    predicted, measured = pair
    r = metric(predicted, measured)  # type: ignore[operator]
    np.testing.assert_allclose(metric(measured, predicted), r, atol=1e-12)  # type: ignore[operator]
    moved = predicted * scale + shift
    assume(all(len(np.unique(moved[:, i])) == len(np.unique(predicted[:, i])) for i in range(3)))
    np.testing.assert_allclose(metric(moved, measured), r, atol=1e-9)  # type: ignore[operator]
    np.testing.assert_allclose(metric(-predicted, measured), -r, atol=1e-9)  # type: ignore[operator]
    assert (np.abs(r[~np.isnan(r)]) <= 1).all()
    varies = (np.ptp(predicted, axis=0) > 0) & (np.ptp(measured, axis=0) > 0)
    assert (np.isnan(r) == ~varies).all()


@settings(deadline=None, max_examples=60)
@given(PAIRS)
def test_error_laws(pair: tuple[np.ndarray, np.ndarray]) -> None:
    predicted, measured = pair
    rmse, mae = rmse_per_gene(predicted, measured), mae_per_gene(predicted, measured)
    assert (mae <= rmse + 1e-12).all()
    np.testing.assert_array_equal(rmse, rmse_per_gene(measured, predicted))
    assert (rmse_per_gene(measured, measured) == 0).all()


def test_float32_is_summed_in_float64() -> None:
    rng = np.random.default_rng(0)
    predicted, measured = (rng.normal(1000, 1, (3000, 2)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose(
        pearson_per_gene(predicted, measured),
        pearson_per_gene(predicted.astype(np.float64), measured.astype(np.float64)),
        atol=1e-12,
    )


@pytest.mark.parametrize("metric", [pearson_per_gene, spearman_per_gene, rmse_per_gene, mae_per_gene])
def test_what_is_refused(metric: object, unchecked: None) -> None:
    good = np.arange(6.0).reshape(3, 2)
    with pytest.raises(MetricError, match="at least 2"):
        metric(good[:1], good[:1])  # type: ignore[operator]
    with pytest.raises(MetricError, match=r"\(3, 2\), measured \(3, 1\)"):
        metric(good, good[:, :1])  # type: ignore[operator]
    for bad in (np.nan, np.inf, -np.inf):
        broken = good.copy()
        broken[1, 1] = bad
        with pytest.raises(MetricError, match=r"measured expression is not finite for 1 of 2 genes \(first: column 1\)"):
            metric(good, broken)  # type: ignore[operator]
    wide, worse = np.random.default_rng(0).normal(size=(2, 700, 300))
    wide[:, 3] = 2.0  # a constant gene is no reason to miss the others
    worse[699, 40], worse[0, 299], worse[600, 270] = np.nan, np.inf, -np.inf
    for pair, name in (((wide, worse), "measured"), ((worse, wide), "predicted")):
        with pytest.raises(MetricError, match=rf"{name} expression is not finite for 3 of 300 genes \(first: column 40\)"):
            metric(*pair)  # type: ignore[operator]


def test_r2_refuses_a_wrong_training_mean(unchecked: None) -> None:
    good = np.arange(6.0).reshape(3, 2)
    for mean in (np.zeros(3), np.array([0.0, np.nan])):
        with pytest.raises(MetricError, match="one finite value for each of 2 genes"):
            r2_per_gene(good, good, mean)
