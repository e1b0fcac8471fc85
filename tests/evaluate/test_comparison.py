"""Models compared over patients: oracles, levels and power in simulation, and words where patients are too few."""

import math
import time

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from stexpr.errors import MetricError
from stexpr.evaluate import comparison
from stexpr.evaluate.comparison import compare_models, patients_needed, sign_flip_test

# hundredths: sums of flips tie often, as exact ties must count
DIFFERENCES = st.lists(st.integers(-40, 40), min_size=1, max_size=12).map(lambda values: np.array(values) / 100)


def signs(n: int) -> np.ndarray:
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)


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
        fewer.setattr(comparison, "EXACT_UP_TO", 5)
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
    values.loc["m0", "p7"] = np.nan  # the reference lacks it
    assert compare_models(values, reference="m0").set_index("a").loc["m2", "verdict"].endswith("for p7")
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
