"""Every test agrees with its oracle, keeps its level in simulation, and says so where patients cannot carry it."""

import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.stats.multitest import multipletests

from stexpr.errors import MetricError
from stexpr.evaluate.testing import (
    GeneTest,
    benjamini_hochberg,
    binomial_p,
    combine_p,
    gene_test,
    holm,
    holm_adjusted,
)

# without subnormal numbers: a product of one has no digits left to agree on
P_VALUES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1, allow_subnormal=False))
POSITIVE_P = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 3)), elements=st.floats(1e-12, 1))

# --- genes -------------------------------------------------------------------------------------------------------------


def test_binomial_p_is_scipys() -> None:
    positive, n = np.array([0, 3, 20, 23, 1]), np.array([4, 4, 23, 23, 1])
    expected = [scipy.stats.binomtest(k, m, 0.5, alternative="greater").pvalue for k, m in zip(positive, n, strict=True)]
    np.testing.assert_allclose(binomial_p(positive, n), expected)
    assert binomial_p(np.array([2]), np.array([2]))[0] == 0.25
    assert np.isnan(binomial_p(np.array([0]), np.array([0]))[0])


@pytest.mark.parametrize(("positive", "n"), [([3], [2]), ([-1], [2]), ([1, 1], [2])])
def test_impossible_counts_are_refused(positive: list[int], n: list[int]) -> None:
    with pytest.raises((MetricError, TypeError)):  # jaxtyping refuses unlike lengths first
        binomial_p(np.array(positive), np.array(n))


def test_stnet_count_needs_20_of_23_patients() -> None:
    # He et al. 2020: Holm at .1 over 250 genes; strong genes reduce what is left to correct for
    positive = np.repeat([20, 12], [100, 150])
    assert str(gene_test(positive, np.full(250, 23))) == "100"
    positive[0] = 18
    assert gene_test(positive, np.full(250, 23)).count == 99


@pytest.mark.parametrize(("genes", "needed"), [(250, 12), (1, 4), (204, 11), (205, 12)])
def test_genes_are_testable_from_the_patients_said(genes: int, needed: int) -> None:
    assert str(gene_test(np.full(genes, 2), np.full(genes, 2))) == f"not testable: n = 2, needs ≥ {needed}"
    assert gene_test(np.full(genes, needed), np.full(genes, needed)).count == genes
    assert gene_test(np.full(genes, needed - 1), np.full(genes, needed - 1)).count is None


def test_genes_without_patients_are_no_hypotheses() -> None:
    # 204 genes can be tested on 11 patients, 205 cannot: the other 100 have none
    n = np.repeat([11, 0], [204, 100])
    assert gene_test(n, n) == GeneTest(204, 11, 11)
    assert str(GeneTest(None, 12, 12)) == "–"
    assert gene_test(np.zeros(3, dtype=int), np.zeros(3, dtype=int)) == GeneTest(None, 0, 4)


@pytest.mark.parametrize(("genes", "alpha"), [(1, 0.5), (2, 0.01), (30, 0.1), (250, 0.1), (250, 0.5)])
def test_holm_equals_statsmodels(genes: int, alpha: float) -> None:
    # few examples: statsmodels collects garbage in every call
    p = np.random.default_rng(genes).choice([1e-5, 2e-3, 0.004, 0.2, 1.0], genes) * np.random.default_rng(1).choice(
        [1, 0.5], genes
    )
    rejected, adjusted, *_ = multipletests(p, alpha=alpha, method="holm")
    assert holm(p, alpha).tolist() == rejected.tolist()
    assert holm(p, alpha).any()
    np.testing.assert_allclose(holm_adjusted(p), adjusted)


@settings(deadline=None, max_examples=60)
@given(P_VALUES, st.sampled_from([0.01, 0.1, 0.5]))
def test_holm_steps_down_until_the_first_p_value_that_fails(p: np.ndarray, alpha: float) -> None:
    ranked, rejected = np.sort(p), 0
    while rejected < len(p) and ranked[rejected] * (len(p) - rejected) <= alpha:
        rejected += 1
    assert holm(p, alpha).sum() == rejected
    assert holm(p, alpha)[np.argsort(p, kind="stable")[:rejected]].all()


@settings(deadline=None, max_examples=60)
@given(P_VALUES, st.sampled_from([0.01, 0.1, 0.5]))
def test_benjamini_hochberg_equals_statsmodels_and_rejects_no_less_than_holm(p: np.ndarray, alpha: float) -> None:
    adjusted, rejected = benjamini_hochberg(p, alpha)
    expected, corrected, *_ = multipletests(p, alpha=alpha, method="fdr_bh")
    np.testing.assert_allclose(adjusted, corrected)
    clear = np.abs(corrected - alpha) > 1e-12
    assert (rejected == expected)[clear].all()
    assert (rejected | ~holm(p, alpha))[clear].all()


def test_nan_is_not_a_hypothesis() -> None:
    p = np.array([0.04, np.nan, 0.01, np.nan])
    for adjusted, whole in (
        (holm_adjusted(p), holm_adjusted(p[::2])),
        (benjamini_hochberg(p)[0], benjamini_hochberg(p[::2])[0]),
    ):
        assert np.isnan(adjusted).tolist() == [False, True, False, True]
        np.testing.assert_array_equal(adjusted[::2], whole)
    assert benjamini_hochberg(p)[1].tolist() == [True, False, True, False]
    assert holm(p, 0.05).tolist() == [True, False, True, False]
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))[0]).all()
    assert benjamini_hochberg(np.array([0.05]), 0.05)[1].all()  # the level itself is reached


@pytest.mark.parametrize("bad", [-0.1, 1.1])
def test_a_p_value_outside_its_range_is_refused(bad: float) -> None:
    for adjust in (holm, benjamini_hochberg):
        with pytest.raises(MetricError, match=str(bad)):
            adjust(np.array([0.5, np.nan, bad]))


@settings(deadline=None, max_examples=60)
@given(POSITIVE_P)
def test_combined_p_over_patients_is_stouffers(p: np.ndarray) -> None:
    expected = scipy.stats.combine_pvalues(np.clip(p, None, 1 - 1e-4), method="stouffer", axis=0).pvalue
    combined = combine_p(p)
    np.testing.assert_allclose(combined, expected, rtol=1e-6)
    np.testing.assert_allclose(combine_p(p[::-1]), combined)
    assert ((combined > 0) & (combined <= 1)).all()


@settings(deadline=None, max_examples=60)
@given(POSITIVE_P, st.integers(2, 5))
def test_repeating_a_patients_section_adds_no_evidence(p: np.ndarray, times: int) -> None:
    names = [f"p{i}" for i in range(len(p))]
    repeated = np.vstack([p] + [p[:1]] * times)
    np.testing.assert_allclose(combine_p(repeated, [*names, *["p0"] * times]), combine_p(p, names))


def test_combined_p_skips_sections_and_patients_without_one() -> None:
    p = np.array([[0.1, np.nan, np.nan], [np.nan, 0.02, np.nan], [0.3, np.nan, np.nan]])
    combined = combine_p(p, ["A", "A", "B"])
    np.testing.assert_allclose(combined[0], scipy.stats.combine_pvalues([0.1, 0.3], method="stouffer").pvalue)
    assert combined[1] == pytest.approx(0.02)
    assert np.isnan(combined[2])


def test_combined_p_hears_a_patient_who_speaks_against_and_survives_p_of_1() -> None:
    for_it, against = combine_p(np.array([[0.001], [0.5]])), combine_p(np.array([[0.001], [0.99]]))
    assert for_it[0] < 0.05 < against[0]
    assert combine_p(np.vstack([np.full((9, 1), 0.01), [[1.0]]]))[0] < 0.01
    assert combine_p(np.full((25, 1), 1e-15))[0] > 0


def test_combined_p_refuses_zero_and_unlike_rows() -> None:
    with pytest.raises(MetricError, match="permutations"):
        combine_p(np.array([[0.0]]))
    with pytest.raises(MetricError, match="2 rows of p-values but 1 patients"):
        combine_p(np.full((2, 1), 0.5), ["A"])


@pytest.mark.parametrize("patients", [2, 8, 23])
def test_combined_p_is_uniform_over_patients_and_conservative_within(patients: int) -> None:
    rng = np.random.default_rng(patients)
    genes, sections = 20_000, 3
    assert scipy.stats.kstest(combine_p(rng.uniform(size=(patients, genes))), "uniform").pvalue > 0.01
    names = np.repeat([f"p{i}" for i in range(patients)], sections).tolist()
    for shared in (0.0, 0.5, 0.9, 1.0):  # correlation of a patient's sections
        of_patient = np.repeat(rng.normal(size=(patients, genes)), sections, axis=0)
        z = np.sqrt(shared) * of_patient + np.sqrt(1 - shared) * rng.normal(size=(patients * sections, genes))
        p = np.ceil(scipy.stats.norm.sf(z) * 1000) / 1000  # as 999 permutations give it
        for level in (0.005, 0.05):
            assert (combine_p(p, names) <= level).mean() <= level + 3 * math.sqrt(level / genes)
    # taking correlated sections for patients would not do
    z = np.repeat(rng.normal(size=(patients, genes)), sections, axis=0)
    assert (combine_p(scipy.stats.norm.sf(z)) <= 0.05).mean() > 0.1
