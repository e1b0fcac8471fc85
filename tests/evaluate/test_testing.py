"""Every test agrees with its oracle, keeps its level in simulation, and says so where patients cannot carry it."""

import math
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from stexpr.errors import MetricError
from stexpr.evaluate import testing
from stexpr.evaluate.testing import (
    GeneTest,
    benjamini_hochberg,
    binomial_p,
    combine_p,
    compare_models,
    gene_test,
    holm,
    holm_adjusted,
    patients_needed,
    sign_flip_test,
)

P_VALUES = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1))
POSITIVE_P = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(1, 3)), elements=st.floats(1e-12, 1))
# hundredths: sums of flips tie often, as exact ties must count
DIFFERENCES = st.lists(st.integers(-40, 40), min_size=1, max_size=12).map(lambda values: np.array(values) / 100)


def signs(n: int) -> np.ndarray:
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


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


# --- models ------------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(DIFFERENCES)
def test_sign_flip_p_counts_every_flip(differences: np.ndarray) -> None:
    whole = np.round(differences * 100)  # integers: ties are exact
    expected = (np.abs(signs(len(whole)) @ whole) >= abs(whole.sum())).mean()
    result = sign_flip_test(differences)
    assert result.p == expected
    assert 0 < result.p <= 1
    assert result.difference == pytest.approx(differences.mean())


@pytest.mark.parametrize("n", [2, 5, 9])
def test_sign_flip_p_equals_scipys(n: int) -> None:
    differences = np.random.default_rng(n).normal(0.3, 1, n)
    expected = scipy.stats.permutation_test((differences,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip_test(differences).p == pytest.approx(expected.pvalue)


@settings(deadline=None, max_examples=40)
@given(DIFFERENCES, st.randoms(use_true_random=False))
def test_sign_flip_ignores_order_direction_and_scale(differences: np.ndarray, random: object) -> None:
    one = sign_flip_test(differences)
    mixed = np.array(random.sample(differences.tolist(), len(differences)))  # type: ignore[attr-defined]
    assert sign_flip_test(mixed) == one
    assert sign_flip_test(3.7 * differences).p == one.p
    other = sign_flip_test(-differences, a="B", b="A")
    assert (other.p, other.difference, other.verdict) == (one.p, -one.difference, one.verdict)


def test_many_patients_draw_flips_as_the_exact_count_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    samples = [rng.normal(mean, 1, n) for mean, n in ((0.0, 12), (0.4, 30), (0.5, 23))]
    exact = [sign_flip_test(sample).p for sample in samples]
    with monkeypatch.context() as fewer:
        fewer.setattr(testing, "EXACT_UP_TO", 5)
        for sample, p in zip(samples, exact, strict=True):
            drawn = sign_flip_test(sample)
            assert drawn.p != p
            assert drawn.p == pytest.approx(p, abs=4 * math.sqrt(p / 100_000))
            assert sign_flip_test(-sample[::-1]).p == drawn.p
    assert sign_flip_test(np.full(31, 0.1)).p == 1e-5


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 6), (0.25, 3), (0.01, 8), (0.0625, 5)])
def test_a_verdict_needs_patients(alpha: float, needed: int) -> None:
    few = sign_flip_test(np.full(needed - 1, 0.1), alpha=alpha)
    assert few.verdict == f"not testable: n = {needed - 1}, needs ≥ {needed}"
    enough = sign_flip_test(np.full(needed, 0.1), alpha=alpha)
    assert (enough.verdict, enough.p, enough.needed, enough.n_patients) == ("A beats B", 2 / 2**needed, needed, needed)


def test_verdicts_name_the_better_model() -> None:
    clear = np.linspace(0.01, 0.1, 8)
    assert sign_flip_test(clear, a="resnet50", b="ridge").verdict == "resnet50 beats ridge"
    assert sign_flip_test(-clear, a="resnet50", b="ridge").verdict == "ridge beats resnet50"
    assert sign_flip_test(clear * [1, -1, 1, -1, 1, -1, 1, -1]).verdict == "no difference shown"
    assert sign_flip_test(np.array([0.1, -0.1, 0.2, -0.2, 0.3, 0.1])).verdict == "no difference shown"  # 6 could have shown it
    assert sign_flip_test(np.zeros(8)).p == 1.0


@pytest.mark.parametrize("bad", [[], [0.1, np.nan], [np.inf]])
def test_a_patient_without_difference_is_refused(bad: list[float]) -> None:
    for test in (sign_flip_test, patients_needed):
        with pytest.raises(MetricError, match="finite difference"):
            test(np.array(bad, dtype=np.float64))


@pytest.mark.parametrize("alpha", [0.0, -0.1, 2.0])
def test_an_impossible_level_is_refused(alpha: float) -> None:
    for test in (sign_flip_test, patients_needed):
        with pytest.raises(MetricError, match="level"):
            test(np.array([0.1, 0.2]), alpha=alpha)


@pytest.mark.parametrize("n", [6, 11])
def test_false_positives_stay_below_the_level_for_any_symmetric_null(n: int) -> None:
    rng = np.random.default_rng(n)
    spread = rng.uniform(0.1, 10, n)  # patients need not be alike
    for draw in (rng.standard_normal, rng.standard_cauchy, lambda size: rng.choice([-1.0, 0.0, 1.0], size)):
        wrong = np.mean([sign_flip_test(spread * draw(n)).p <= 0.05 for _ in range(1000)])
        assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)
    attained = math.floor(0.05 * 2 ** (n - 1)) / 2 ** (n - 1)
    exact = np.mean([sign_flip_test(rng.normal(size=n)).p <= 0.05 for _ in range(1000)])
    assert exact == pytest.approx(attained, abs=4 * math.sqrt(attained / 1000))


# --- patients needed ---------------------------------------------------------------------------------------------------


def with_effect(effect: float, n: int = 8) -> np.ndarray:
    """Differences whose mean is `effect` times their SD of 1."""
    z = np.linspace(-1, 1, n)
    return effect + (z - z.mean()) / z.std(ddof=1)


@pytest.mark.parametrize(("effect", "alpha"), [(1.6, 0.05), (1.1, 0.05), (0.95, 0.05), (1.7, 0.01)])
def test_patients_needed_gives_the_power_in_simulation(effect: float, alpha: float) -> None:
    found = patients_needed(with_effect(effect), alpha=alpha)
    assert found is not None
    assert found.needed is not None
    rng = np.random.default_rng(0)
    n = found.needed
    flips = signs(n)[: 2 ** (n - 1)].T  # the other half mirrors these
    power = {}
    for patients in (n, n - 1):
        x = rng.normal(effect, 1, (1500, patients))
        half = flips if patients == n else signs(patients)[: 2 ** (patients - 1)].T
        p = (np.abs(x @ half) >= np.abs(x.sum(axis=1, keepdims=True)) - 1e-9).mean(axis=1)
        power[patients] = ((p <= alpha) & (x.mean(axis=1) > 0)).mean()
        planned = found.curve.set_index("n_patients")["power"][patients]
        assert power[patients] == pytest.approx(planned, abs=0.06)
    assert power[n] > 0.75
    assert power[n - 1] < 0.83


def test_power_of_many_patients_is_students() -> None:
    found = patients_needed(with_effect(0.3))
    assert found is not None
    expected = TTestPower().solve_power(effect_size=0.3, power=0.8, alpha=0.05, alternative="two-sided")
    assert found.needed == math.ceil(expected)


def test_power_at_the_fewest_patients_is_that_of_all_agreeing() -> None:
    found = patients_needed(with_effect(1.5))
    assert found is not None
    power = found.curve.set_index("n_patients")["power"]
    assert power[6] == pytest.approx(scipy.stats.norm.cdf(1.5) ** 6)
    assert (power.loc[:5] == 0).all()


@settings(deadline=None, max_examples=25)
@given(st.floats(0.05, 20), st.floats(1.01, 3), st.sampled_from([0.05, 0.01, 0.05 / 199]))
def test_larger_effects_need_no_more_patients_and_never_fewer_than_testable(effect: float, more: float, alpha: float) -> None:
    small, large = (patients_needed(with_effect(e), alpha=alpha) for e in (effect, more * effect))
    assert small is not None
    assert large is not None
    for found in (small, large):
        assert (found.needed or 999) >= sign_flip_test(with_effect(1.0), alpha=alpha).needed
        assert (found.cautious or 999) >= (found.needed or 999)
        assert (found.curve["power"].diff().dropna() > -1e-9).all()
        assert found.curve[["power", "power_cautious"]].stack().between(0, 1).all()
    assert (large.needed or 999) <= (small.needed or 999)
    assert (large.curve["power"] >= small.curve["power"] - 1e-9).all()


def test_more_power_needs_more_patients_and_the_fewest_patients_know_least() -> None:
    half, most = (patients_needed(with_effect(0.8), power=power) for power in (0.5, 0.95))
    assert half is not None
    assert most is not None
    assert half.needed is not None
    assert most.needed is not None
    assert half.needed < most.needed
    two, many = (patients_needed(with_effect(1.0, n)) for n in (2, 24))
    assert two is not None
    assert many is not None
    assert two.needed == many.needed == 11
    assert (two.cautious, many.cautious) == (125, 13)
    assert str(two) == "11 (cautious: 125)"


def test_what_cannot_be_estimated_is_none_and_what_is_far_is_capped() -> None:
    assert patients_needed(np.array([0.1])) is None
    assert patients_needed(np.array([-0.1, -0.2, 0.1])) is None
    assert patients_needed(np.array([0.1, -0.1])) is None
    far = patients_needed(with_effect(0.05))
    assert far is not None
    assert (far.needed, str(far)) == (None, "> 200")
    sure = patients_needed(np.full(3, 0.1))  # every patient alike: SD 0
    assert sure is not None
    assert str(sure).startswith("6")
    assert far.curve["n_patients"].tolist() == list(range(2, 201))


# --- many models -------------------------------------------------------------------------------------------------------


def board(models: int, patients: int, *, seed: int = 0) -> pd.DataFrame:
    """Models that gain .01 each, over patients who differ more than the models do."""
    rng = np.random.default_rng(seed)
    values = 0.2 + 0.01 * np.arange(models)[:, None] + rng.normal(0, 0.2, patients) + rng.normal(0, 0.01, (models, patients))
    return pd.DataFrame(values, [f"m{i}" for i in range(models)], [f"p{i}" for i in range(patients)])


def test_each_pair_is_the_sign_flip_test_corrected_by_holm() -> None:
    values = board(6, 10)
    compared = compare_models(values, reference="m2")
    assert compared["a"].tolist() == ["m0", "m1", "m3", "m4", "m5"]
    assert set(compared["b"]) == {"m2"}
    tests = [sign_flip_test((values.loc[a] - values.loc["m2"]).to_numpy()) for a in compared["a"]]
    assert compared["p"].tolist() == [test.p for test in tests]
    np.testing.assert_allclose(compared["difference"], [test.difference for test in tests])
    np.testing.assert_allclose(compared["p_holm"], multipletests(compared["p"], method="holm")[1])
    assert compared["n_patients"].tolist() == [10] * 5
    assert compared["verdict"].tolist() == [
        (f"{a} beats m2" if difference > 0 else f"m2 beats {a}") if p <= 0.05 else "no difference shown"
        for a, difference, p in zip(compared["a"], compared["difference"], compared["p_holm"], strict=True)
    ]
    assert {"m2 beats m0", "m5 beats m2"} <= set(compared["verdict"])
    ahead = patients_needed((values.loc["m5"] - values.loc["m2"]).to_numpy(), alpha=0.05 / 5)
    assert compared["patients_needed"].tolist()[-1] == str(ahead)
    assert compared["patients_needed"].tolist()[0] == "–"


def test_the_best_models_are_paired_once_better_first() -> None:
    values = board(5, 8).sample(frac=1, random_state=1)
    leaders = compare_models(values, top=3)
    assert list(zip(leaders["a"], leaders["b"], strict=True)) == [("m4", "m3"), ("m4", "m2"), ("m3", "m2")]
    both = compare_models(values, reference="m4", top=3)
    assert len(both) == 4 + 1  # pairs with the reference are not tested twice
    assert both.iloc[-1][["a", "b"]].tolist() == ["m3", "m2"]


def test_more_pairs_need_more_patients() -> None:
    assert compare_models(board(2, 2), reference="m0").loc[0, "verdict"] == "not testable: n = 2, needs ≥ 6"
    twenty = compare_models(board(21, 8), reference="m0")
    assert set(twenty["verdict"]) == {"not testable: n = 8, needs ≥ 10"}  # 20 · 2 / 2^10 <= .05
    assert twenty["p_holm"].min() > 0.05
    assert (compare_models(board(21, 10), reference="m0")["verdict"] == "m20 beats m0").any()


def test_an_undefined_pair_is_named_and_not_corrected_for() -> None:
    values = board(4, 8)
    values["gone"] = np.nan  # undefined for all: left out for all
    values.loc["m3", ["p1", "p4"]] = np.nan
    values.loc["m1", :] = np.nan
    compared = compare_models(values, reference="m0").set_index("a")
    assert compared.loc["m3", "verdict"] == "undefined: no r of one model for p1, p4"
    assert compared.loc[["m1", "m3"], ["difference", "p", "p_holm"]].isna().all(axis=None)
    assert compared["n_patients"].to_dict() == {"m1": 0, "m2": 8, "m3": 6}
    assert compared.loc["m2", "p_holm"] == compared.loc["m2", "p"]
    nothing = compare_models(pd.DataFrame(np.nan, ["x", "y"], ["p"]), reference="y")
    assert nothing.loc[0, "verdict"] == "undefined: no r of one model for any patient"


def test_a_pair_of_fewer_patients_is_shown_where_holm_gets_to_it() -> None:
    # 4 pairs need 8 patients each, but the last step of Holm tests at .05 itself, where 6 suffice
    values = board(8, 16) + 10.0 * np.arange(8)[:, None]
    values.loc[["m6", "m7"], "p6":] = np.nan
    pairs = compare_models(values.loc[["m7", "m6"]], reference="m6")
    assert pairs.loc[0, ["verdict", "n_patients"]].tolist() == ["m7 beats m6", 6]
    # the leaders m7 and m6 share 6 patients; m7 against the others is undefined, m5 to m3 among themselves have 16
    leaders = compare_models(values.iloc[3:], top=5).set_index(["a", "b"])
    assert leaders["p"].notna().sum() == 4
    assert leaders.loc[("m7", "m6"), ["n_patients", "p_holm", "verdict"]].tolist() == [6, 2 / 2**6, "m7 beats m6"]
    # and where its own p is too large for the level, few patients are the reason given
    values.loc["m7", "p0"] = values.loc["m6", "p0"] - 1.0
    assert compare_models(values.iloc[3:], top=5).loc[0, "verdict"] == "not testable: n = 6, needs ≥ 8"


def test_nothing_to_compare_is_refused() -> None:
    values = board(3, 4)
    with pytest.raises(MetricError, match="give a reference"):
        compare_models(values)
    with pytest.raises(MetricError, match="top is 1"):
        compare_models(values, reference="m0", top=1)
    with pytest.raises(MetricError, match="did you mean 'm1'"):
        compare_models(values, reference="m1x")
    for bad in (values.iloc[:1], pd.concat([values, values]), values.replace(values.iloc[0, 0], np.inf)):
        with pytest.raises(MetricError, match="comparing needs two or more"):
            compare_models(bad, reference="m0")


def test_200_models_of_23_patients_are_fast() -> None:
    values = board(200, 23)
    compare_models(values.iloc[:3], reference="m0")  # scipy loads
    start = time.process_time()
    compared = compare_models(values, reference="m0")
    assert time.process_time() - start < 2  # of this process: the machine may be busy
    assert compared["verdict"].str.endswith("beats m0").sum() > 150
