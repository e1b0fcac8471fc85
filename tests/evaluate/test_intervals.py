"""Intervals hold the truth as often as they say, and neighbors are not taken for independent."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_runs import make_predictions

from stexpr.errors import MetricError
from stexpr.evaluate.intervals import (
    BOOTSTRAP,
    THESE_SECTIONS,
    T,
    block_replicates,
    patient_interval,
    percentile_interval,
    spatial_blocks,
    t_interval,
)
from stexpr.evaluate.metrics import pearson_per_gene


def smooth_section(spots: int = 324, genes: int = 20) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    predictions = make_predictions(strength=0.5, spots=spots, genes=genes)
    x, y = (predictions.obs[axis].to_numpy(dtype=np.float64) for axis in ("x_um", "y_um"))
    return predictions.X, predictions.layers["measured"], x, y


def test_t_interval_is_scipys_and_covers() -> None:
    import scipy.stats

    rng = np.random.default_rng(0)
    values = rng.normal(0.3, 0.1, 7)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    interval = t_interval(values)
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    draws = [t_interval(rng.normal(0.3, 0.1, 6)) for _ in range(2000)]
    assert np.mean([draw.low <= 0.3 <= draw.high for draw in draws]) == pytest.approx(0.95, abs=0.015)
    assert np.isnan(t_interval(np.array([0.3])).low)


def test_patient_bootstrap_covers() -> None:
    rng = np.random.default_rng(0)
    held = []
    for trial in range(400):
        r = 0.3 + rng.normal(0, 0.1, (20, 1)) + rng.normal(0, 0.05, (20, 5))  # a patient's genes go together
        interval = patient_interval(r, n=400, seed=trial)
        held.append(interval.low <= 0.3 <= interval.high)
    # the percentile bootstrap of 20 patients is known to be a little narrow
    assert 0.90 <= np.mean(held) <= 0.97


@pytest.mark.parametrize(("patients", "kind"), [(2, THESE_SECTIONS), (5, THESE_SECTIONS), (6, T), (9, T), (10, BOOTSTRAP)])
def test_the_number_of_patients_chooses(patients: int, kind: str) -> None:
    r = np.random.default_rng(0).normal(0.3, 0.1, (patients, 4))
    interval = patient_interval(r, np.linspace(0.2, 0.4, 100))
    assert interval.kind == kind
    assert interval.low < r.mean() < interval.high
    assert ("these sections only" in interval.kind) == (patients < 6)


def test_without_replicates_few_patients_have_no_interval() -> None:
    interval = patient_interval(np.full((3, 2), 0.5))
    assert np.isnan([interval.low, interval.high]).all()


def test_unlike_panels_are_resampled_as_they_are_averaged() -> None:
    r = np.random.default_rng(0).normal(0.3, 0.1, (10, 3))
    r[:5, 2] = np.nan  # the third gene is in five patients' panels only
    interval = patient_interval(r)
    assert interval.low < np.nanmean(r, axis=0).mean() < interval.high
    for_t = patient_interval(r[2:8])
    assert (for_t.low + for_t.high) / 2 == pytest.approx(np.nanmean(r[2:8], axis=0).mean())


def test_replicates_move_to_the_point() -> None:
    replicates = np.random.default_rng(0).normal(0.2, 0.02, 4000)
    moved, raw = percentile_interval(replicates, "x", center=0.3), percentile_interval(replicates, "x")
    assert (moved.low + moved.high) / 2 == pytest.approx(0.3, abs=0.003)
    assert moved.high - moved.low == pytest.approx(raw.high - raw.low)


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 400), st.floats(0.2, 5), st.integers(0, 10))
def test_blocks_are_neighbors(spots: int, aspect: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.uniform(0, 6000, spots), rng.uniform(0, 6000 * aspect, spots)
    blocks = spatial_blocks(x, y)
    sizes = np.bincount(blocks)
    assert (sizes > 0).all()
    assert len(sizes) <= 45
    if spots >= 120:
        assert 20 <= len(sizes) <= 40
    for block in range(len(sizes)):
        inside = blocks == block
        assert np.ptp(x[inside]) <= 6000 * max(1, aspect)
    if len(sizes) > 1:  # squares: no block is much wider than the section's share of it
        widest = max(max(np.ptp(x[blocks == b]), np.ptp(y[blocks == b])) for b in range(len(sizes)))
        assert widest < max(np.ptp(x), np.ptp(y))


def test_one_place_is_one_block() -> None:
    assert (spatial_blocks(np.zeros(5), np.zeros(5)) == 0).all()


def test_replicates_equal_resampled_pearson() -> None:
    predicted, measured, x, y = smooth_section()
    blocks = spatial_blocks(x, y)
    drawn = block_replicates(predicted, measured, blocks, ["A1"] * len(x), n=5)
    # the same draw by hand, spots repeated
    import hashlib

    rng = np.random.default_rng([0, int.from_bytes(hashlib.sha256(b"A1").digest()[:8])])
    n_blocks = blocks.max() + 1
    weights = rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=5)
    for replicate in range(5):
        rows = np.repeat(np.arange(len(x)), weights[replicate][blocks])
        np.testing.assert_allclose(drawn[:, replicate], pearson_per_gene(predicted[rows], measured[rows]), atol=1e-6)


def test_blocks_give_wider_intervals_than_single_spots() -> None:
    predicted, measured, x, y = smooth_section()
    sections = ["A1"] * len(x)
    by_block = block_replicates(predicted, measured, spatial_blocks(x, y), sections)
    by_spot = block_replicates(predicted, measured, np.arange(len(x)), sections)
    assert np.median(by_block.std(axis=1) / by_spot.std(axis=1)) > 1.15


def test_all_models_are_resampled_alike() -> None:
    predicted, measured, x, y = smooth_section()
    blocks, sections = spatial_blocks(x, y), ["A1"] * len(x)
    one = block_replicates(predicted, measured, blocks, sections, n=50)
    np.testing.assert_allclose(one, block_replicates(predicted * 2 + 1, measured, blocks, sections, n=50), atol=1e-5)
    assert not np.allclose(one, block_replicates(predicted, measured, blocks, ["A2"] * len(x), n=50))
    assert not np.allclose(one, block_replicates(predicted, measured, blocks, sections, n=50, seed=1))


def test_sections_keep_their_number_of_blocks() -> None:
    # two sections apart by a shift only: if blocks were drawn across them, some replicates would hold one section alone
    predicted, measured, x, y = smooth_section(100, 2)
    both = np.vstack([predicted, predicted + 50]), np.vstack([measured, measured + 50])
    blocks = np.tile(spatial_blocks(x, y), 2)
    drawn = block_replicates(*both, blocks, ["A1"] * 100 + ["A2"] * 100, n=200)
    assert (drawn > 0.98).all()


def test_constants_in_replicates() -> None:
    predicted, measured, x, y = smooth_section(genes=3)
    measured, predicted = measured.copy(), predicted.copy()
    measured[:, 0] = 1.5
    predicted[:, 1] = 1.5
    rare = np.zeros(len(x), dtype=np.float32)
    rare[0] = 3.0  # one spot with a count: absent from about a third of the replicates
    measured[:, 2] = rare
    drawn = block_replicates(predicted, measured, spatial_blocks(x, y), ["A1"] * len(x), n=300)
    assert np.isnan(drawn[0]).all()
    assert (drawn[1] == 0).all()
    assert 0.25 < np.isnan(drawn[2]).mean() < 0.5


def test_no_spot_is_refused() -> None:
    with pytest.raises(MetricError, match="no spot"):
        block_replicates(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0, dtype=np.int64), [])


def test_a_thousand_replicates_are_quick() -> None:
    predicted, measured, x, y = smooth_section(1024, 250)
    start = time.process_time()
    block_replicates(predicted, measured, spatial_blocks(x, y), ["A1"] * len(x))
    assert time.process_time() - start < 3  # a loop over scipy's pearsonr takes more than a minute
