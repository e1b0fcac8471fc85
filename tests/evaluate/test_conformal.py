"""Intervals hold what they say: over new patients where there are enough, over further spots where there are not."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.errors import MetricError, ModelError
from stexpr.evaluate.conformal import fit_intervals, patients_needed
from stexpr.models.export.intervals import COVERAGES, PredictionIntervals

GENES = tuple(f"GENE{i}" for i in range(6))


def cohort(n_patients: int, seed: int, n_spots: int = 80) -> tuple[np.ndarray, np.ndarray]:
    """Residuals whose size and shift differ from patient to patient, and from gene to gene; patients of unlike size."""
    rng = np.random.default_rng(seed)
    parts, patients = [], []
    for patient in range(n_patients):
        n = int(rng.integers(n_spots // 2, n_spots * 2))
        scale, shift = np.exp(rng.normal(0, 0.4, len(GENES))), rng.normal(0, 0.5, len(GENES))
        parts.append(rng.standard_t(5, (n, len(GENES))) * scale + shift)
        patients += [f"patient {patient}"] * n
    return np.concatenate(parts), np.array(patients)


def covered(intervals: PredictionIntervals, residuals: np.ndarray, patients: np.ndarray, coverage: float) -> float:
    """Share inside, each patient counting once."""
    low, high = intervals.around(np.zeros_like(residuals), coverage)
    inside = ((residuals >= low) & (residuals <= high)).mean(axis=1)
    return float(np.mean([inside[patients == patient].mean() for patient in np.unique(patients)]))


@pytest.mark.parametrize("seed", range(3))
def test_90_percent_intervals_cover_new_patients(seed):
    intervals = fit_intervals(*cohort(24, seed), GENES)
    share = covered(intervals, *cohort(60, seed + 100), 0.9)
    assert intervals.level == "patient"
    assert 0.85 <= share <= 0.95, share


def test_pooling_spots_covers_too_little_where_patients_differ():
    """What the hierarchy is for: with patients of very unlike noise, intervals that take spots for independent fall short
    of the claim more often than the patient-wise ones."""
    pooled, hierarchical = [], []
    for seed in range(40):
        residuals, patients = cohort(10, seed, n_spots=30)
        new = cohort(20, seed + 1000, n_spots=30)
        by_spot = fit_intervals(residuals, ["one"] * len(residuals), GENES)
        pooled.append(covered(by_spot, *new, 0.9))
        hierarchical.append(covered(fit_intervals(residuals, patients, GENES), *new, 0.9))
    assert np.mean(hierarchical) >= 0.9
    assert np.mean(np.array(hierarchical) < 0.9) < np.mean(np.array(pooled) < 0.9)


@given(n_patients=st.integers(1, 30), seed=st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_wider_for_more_coverage_and_labelled_by_patients(n_patients, seed):
    intervals = fit_intervals(*cohort(n_patients, seed, n_spots=20), GENES)
    assert (np.diff(intervals.half_width, axis=1) >= 0).all()
    assert intervals.level == ("patient" if n_patients >= 9 else "spot")
    assert ("not valid for new patients" in intervals.label) == (n_patients < 9)
    if intervals.level == "patient":
        enough = np.array([n_patients >= patients_needed(coverage) for coverage in COVERAGES])
        assert (np.isfinite(intervals.half_width).all(axis=0) == enough).all()


def test_further_spots_are_covered():
    residuals, _ = cohort(1, 5, n_spots=4000)
    intervals = fit_intervals(residuals[::2], ["one"] * len(residuals[::2]), GENES)
    low, high = intervals.around(np.zeros_like(residuals[1::2]), 0.9)
    assert ((residuals[1::2] >= low) & (residuals[1::2] <= high)).mean() == pytest.approx(0.9, abs=0.02)


def test_one_patient_cannot_outweigh_the_others():
    """Nine quiet patients of 10 spots and one loud of 10,000: the median over patients stays quiet."""
    quiet, loud = np.full((90, 1), 0.1), np.full((10_000, 1), 5.0)
    patients = [f"p{i // 10}" for i in range(90)] + ["loud"] * 10_000
    intervals = fit_intervals(np.concatenate([quiet, loud]), patients, ["A"], [0.5])
    assert intervals.half_width[0, 0] == pytest.approx(0.1)


def test_a_gene_of_too_few_patients_has_no_bound_and_an_unpredicted_one_none_at_all():
    residuals, patients = cohort(12, 0)
    residuals[patients != "patient 3", 0] = np.nan
    residuals[:, 1] = np.nan
    half = fit_intervals(residuals, patients, GENES, [0.9]).half_width[:, 0]
    assert half[0] == np.inf
    assert np.isnan(half[1])
    assert np.isfinite(half[2:]).all()


def test_ends_do_not_pass_what_no_measurement_is_below():
    intervals = PredictionIntervals(("A",), (0.9,), np.array([[1.0]], dtype=np.float32), "spot", 1, 10)
    low, high = intervals.around(np.array([[0.25], [3.0]]), 0.9, lowest=0.0)
    assert low.ravel().tolist() == [0.0, 2.0]
    assert high.ravel().tolist() == [1.25, 4.0]
    with pytest.raises(ModelError, match=r"no 0\.8 intervals; take one of 0\.9"):
        intervals.around(np.zeros((1, 1)), 0.8)


@given(seed=st.integers(0, 2**20), n_patients=st.integers(1, 12))
@settings(max_examples=20, deadline=None)
def test_a_table_comes_back_as_it_was(seed, n_patients):
    intervals = fit_intervals(*cohort(n_patients, seed, n_spots=10), GENES)
    about = {"level": intervals.level, "n_patients": intervals.n_patients, "n_spots": intervals.n_spots}
    back = PredictionIntervals.from_csv(intervals.to_csv(), GENES, **about)
    np.testing.assert_array_equal(back.half_width, intervals.half_width)
    assert back.coverages == intervals.coverages
    with pytest.raises(ModelError, match="genes are not those"):
        PredictionIntervals.from_csv(intervals.to_csv(), GENES[::-1], **about)


@pytest.mark.parametrize(
    "text", ["", "gene,0.9\nA,x\n", "gene,1.5\nA,1\n", "gene,0.9\nA,-1\n", "other,0.9\nA,1\n", "gene,0.9\nA\n"]
)
def test_a_broken_table_is_refused(text):
    with pytest.raises(ModelError, match="intervals cannot be read"):
        PredictionIntervals.from_csv(text.encode(), ("A",), level="spot", n_patients=1, n_spots=1)


@pytest.mark.parametrize(("n", "coverage"), [(0, 0.9), (10, 1.0), (10, 0.0)])
def test_nothing_to_calibrate_on_is_refused(n, coverage):
    with pytest.raises(MetricError, match="intervals need spots"):
        fit_intervals(np.zeros((n, 1)), ["one"] * n, ["A"], [coverage])
