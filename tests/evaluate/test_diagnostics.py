"""Calibration and depth against scipy, numpy and what was planted."""

from collections.abc import Callable, Iterator

import jaxtyping
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stexpr.errors import MetricError
from stexpr.evaluate.diagnostics import (
    calibration_slope_per_gene,
    depth_stratified_pearson,
    standardized_pair,
)
from stexpr.evaluate.metrics import pearson_per_gene

QUARTERS = arrays(np.float64, (12, 3), elements=st.integers(-50, 50).map(lambda n: n / 4))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Users run without shape checks: what they see for unlike shapes is our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def test_slope_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    predicted = rng.normal(3, 2, (50, 5))
    measured = predicted * np.array([1, 0.3, 2, -1, 0]) + rng.normal(size=(50, 5))
    expected = [scipy.stats.linregress(predicted[:, i], measured[:, i]).slope for i in range(5)]
    np.testing.assert_allclose(calibration_slope_per_gene(predicted, measured), expected, rtol=1e-10)


def test_slope_tells_a_constant_prediction_from_a_constant_gene() -> None:
    varied = np.random.default_rng(0).normal(size=(20, 1)).astype(np.float32)
    steps = np.arange(20)[:, None] % 4 * np.spacing(np.float32(1.7))
    collapsed = (np.float32(1.7) + steps).astype(np.float32)
    assert np.isnan(calibration_slope_per_gene(collapsed, varied))[0]
    assert calibration_slope_per_gene(varied, collapsed)[0] == 0


@settings(deadline=None, max_examples=40)
@given(QUARTERS, st.floats(0.1, 20), st.floats(-30, 30))
def test_calibrating_a_prediction_makes_its_slope_one(values: np.ndarray, scale: float, shift: float) -> None:
    measured = values + np.arange(12.0)[:, None] * 30  # varies, and follows the prediction
    predicted = measured * scale + shift
    slope = calibration_slope_per_gene(predicted, measured)
    np.testing.assert_allclose(slope, 1 / scale, rtol=1e-6)
    np.testing.assert_allclose(calibration_slope_per_gene(predicted * slope, measured), 1, rtol=1e-9)


def expression_with_depth(n: int = 1200, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Measured genes that follow depth (log-SD 0.8, as in HER2ST) and a signal of their own; the signal; the depth."""
    rng = np.random.default_rng(seed)
    library = np.exp(rng.normal(8, 0.8, n))
    signal = rng.normal(size=(n, 4))
    return 2 * np.log(library)[:, None] + signal + rng.normal(size=(n, 4)), signal, library


def test_a_prediction_of_depth_alone_comes_out_near_zero() -> None:
    measured, signal, library = expression_with_depth()
    depth = np.repeat(library[:, None] ** 0.3, 4, axis=1)
    assert (pearson_per_gene(depth, measured) > 0.6).all()
    # strata alone would leave the depth that varies inside the outer ones: about 0.3
    assert (np.abs(depth_stratified_pearson(depth, measured, library)) < 0.1).all()
    np.testing.assert_allclose(depth_stratified_pearson(signal, measured, library), np.sqrt(0.5), atol=0.05)
    np.testing.assert_allclose(depth_stratified_pearson(signal + depth, measured, library), np.sqrt(0.5), atol=0.05)


def test_depth_strata_equal_residuals_by_hand() -> None:
    measured, signal, library = expression_with_depth(90)
    number = np.digitize(library, np.quantile(library, [1 / 3, 2 / 3]))
    dummies = (number[:, None] == np.arange(3)).astype(float)
    design = np.hstack([dummies, dummies * np.log(library)[:, None]])
    rest = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in (signal, measured)]
    expected = [scipy.stats.pearsonr(rest[0][:, i], rest[1][:, i])[0] for i in range(4)]
    np.testing.assert_allclose(depth_stratified_pearson(signal, measured, library, n_strata=3), expected, atol=1e-10)


def test_depth_that_explains_everything_leaves_nothing_to_correlate() -> None:
    measured, signal, library = expression_with_depth(90)
    predicted = np.stack([np.log(library), 3 - 2 * np.log(library), np.full(90, 0.3), signal[:, 0]], axis=1)
    for dtype in (np.float64, np.float32):
        r = depth_stratified_pearson(predicted.astype(dtype), measured.astype(dtype), library.astype(dtype))
        assert np.isnan(r).tolist() == [True, True, True, False]


def test_one_library_size_for_all_is_the_plain_correlation() -> None:
    measured, signal, _ = expression_with_depth(90)
    np.testing.assert_allclose(
        depth_stratified_pearson(signal, measured, np.full(90, 77.0)), pearson_per_gene(signal, measured), atol=1e-12
    )


def test_depth_strata_do_not_depend_on_the_order_of_spots() -> None:
    measured, signal, library = expression_with_depth(90)
    library = np.ceil(library / 1000)  # many ties
    order = np.random.default_rng(1).permutation(90)
    np.testing.assert_allclose(
        depth_stratified_pearson(signal[order], measured[order], library[order]),
        depth_stratified_pearson(signal, measured, library),
        atol=1e-12,
    )


def test_constant_genes_are_nan_in_their_place() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 3))
    x[:, 1] = y[:, 2] = 0.1 + 0.2
    for side in standardized_pair(x, y):
        assert np.isnan(side).all(axis=0).tolist() == [False, True, True]
        np.testing.assert_allclose([side[:, 0].mean(), side[:, 0].std()], [0, 1], atol=1e-12)


@pytest.mark.parametrize(
    "measure",
    [
        calibration_slope_per_gene,
        standardized_pair,
        lambda x, y: depth_stratified_pearson(x, y, np.ones(len(x)), n_strata=1),
    ],
)
def test_what_has_no_metric_is_refused(measure: Callable[..., object], unchecked: None) -> None:
    good = np.arange(12.0).reshape(6, 2)
    with pytest.raises(MetricError, match="at least 2"):
        measure(good[:1], good[:1])
    with pytest.raises(MetricError, match="one shape"):
        measure(good, good[:, :1])
    with pytest.raises(MetricError, match="predicted expression is not finite"):
        measure(np.where(good == 3, np.nan, good), good)


def test_own_refusals(unchecked: None) -> None:
    good = np.random.default_rng(0).normal(size=(15, 2))
    with pytest.raises(MetricError, match="15 spots in 4 depth strata"):
        depth_stratified_pearson(good, good, np.ones(15))
    with pytest.raises(MetricError, match="at least 1 stratum"):
        depth_stratified_pearson(good, good, np.ones(15), n_strata=0)
    for library in (np.ones(14), np.r_[np.ones(14), 0], np.r_[np.ones(14), np.nan]):
        with pytest.raises(MetricError, match="one positive, finite size for each of 15 spots"):
            depth_stratified_pearson(good, good, library, n_strata=2)
