"""Concordance: scikit-survival's values, the laws of ranks, and refusals past the training follow-up."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from survivors import SMALL, Survivors, survivors

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides import concordance
from stexpr.evaluate.slides.censoring import Censoring
from stexpr.evaluate.slides.concordance import harrell_c, uno_c


def structured(of: Survivors) -> np.ndarray:
    return np.array(list(zip(of.event, of.time, strict=True)), dtype=[("event", bool), ("time", float)])


@pytest.mark.parametrize("seed", range(6))
def test_values_are_scikit_survivals(seed: int) -> None:
    oracle = pytest.importorskip("sksurv.metrics", reason="the oracle scikit-survival is not installed (extra: oracles)")
    training, of = survivors(150, seed), survivors(60, 100 + seed)
    expected = oracle.concordance_index_censored(of.event, of.time, of.log_hazard)[0]
    assert harrell_c(of.log_hazard, of.time, of.event) == pytest.approx(expected, abs=1e-10)
    censoring, until = Censoring.of(training.time, training.event), float(np.quantile(training.time, 0.9))
    expected = oracle.concordance_index_ipcw(structured(training), structured(of), of.log_hazard, tau=until)[0]
    assert uno_c(of.log_hazard, of.time, of.event, censoring, until) == pytest.approx(expected, abs=1e-10)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # as torchsurv 0.2 is imported
def test_harrells_c_is_lifelines_and_torchsurvs() -> None:
    lifelines = pytest.importorskip("lifelines.utils", reason="the oracle lifelines is not installed (extra: oracles)")
    of = survivors(60, 5, decimals=6)
    value = harrell_c(of.log_hazard, of.time, of.event)
    # lifelines wants a time where we want a hazard
    assert value == pytest.approx(lifelines.concordance_index(of.time, -of.log_hazard, of.event), abs=1e-10)
    import torch
    from torchsurv.metrics.cindex import ConcordanceIndex

    columns = torch.tensor(of.log_hazard), torch.tensor(of.event), torch.tensor(of.time)
    assert value == pytest.approx(float(ConcordanceIndex()(*columns)), abs=1e-5)


@settings(deadline=None, max_examples=60)
@given(SMALL, st.permutations(range(12)))
def test_ranks_and_order(of: Survivors, order: list[int]) -> None:
    assume(of.event.any())
    try:
        value = harrell_c(of.log_hazard, of.time, of.event)
    except MetricError:
        assume(False)
    mixed = of.only(np.array(order))
    assert harrell_c(mixed.log_hazard, mixed.time, mixed.event) == pytest.approx(value)
    assert harrell_c(np.exp(of.log_hazard), of.time**2, of.event) == value
    assert harrell_c(-of.log_hazard, of.time, of.event) == pytest.approx(1 - value)
    assert harrell_c(np.zeros(12), of.time, of.event) == 0.5
    assert 0 <= value <= 1


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_without_censoring_uno_is_harrell(seed: int) -> None:
    of = survivors(20, seed, censoring=0)
    censoring = Censoring.of(np.r_[of.time, of.time.max() + 1], np.ones(21, dtype=bool))
    assert uno_c(of.log_hazard, of.time, of.event, censoring) == pytest.approx(harrell_c(of.log_hazard, of.time, of.event))


def test_censoring_moves_harrells_c_and_not_unos() -> None:
    whole = survivors(3000, 1, decimals=4, censoring=0)
    cut = float(np.quantile(whole.time, 0.8))
    truth = uno_c(whole.log_hazard, whole.time, whole.event, Censoring.of(whole.time, whole.event), cut)
    heavy = survivors(3000, 1, decimals=4, censoring=1.5)
    uno = uno_c(heavy.log_hazard, heavy.time, heavy.event, Censoring.of(heavy.time, heavy.event), cut)
    assert abs(uno - truth) < 0.02
    assert abs(uno - truth) < abs(harrell_c(heavy.log_hazard, heavy.time, heavy.event) - truth)


def test_past_the_training_follow_up_uno_raises() -> None:
    training = Censoring.of(np.array([1.0, 2.0, 3.0]), np.array([True, False, True]))
    time, event = np.array([1.0, 4.0, 5.0]), np.array([True, True, False])
    with pytest.raises(MetricError, match=r"1 times lie past the last training follow-up, 3 \(largest: 4\)"):
        uno_c(np.zeros(3), time, event, training)
    assert uno_c(np.zeros(3), time, event, training, until=3.0) == 0.5
    censored_last = Censoring.of(np.array([1.0, 2.0]), np.array([True, False]))
    with pytest.raises(MetricError, match="no training patient is under observation beyond 2"):
        uno_c(np.zeros(2), np.array([2.0, 2.5]), np.array([True, False]), censored_last)


def test_no_comparable_pair_is_no_score() -> None:
    with pytest.raises(MetricError, match="no comparable pair among 3 patients with 0 events"):
        harrell_c(np.arange(3.0), np.arange(1.0, 4.0), np.zeros(3, dtype=bool))
    with pytest.raises(MetricError, match="with 1 events"):
        harrell_c(np.arange(3.0), np.arange(1.0, 4.0), np.array([False, False, True]))
    with pytest.raises(DataError, match="log_hazard is not finite"):
        harrell_c(np.array([np.nan, 1]), np.array([1.0, 2.0]), np.array([True, True]))


def test_events_in_blocks_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    of = survivors(40, 2)
    whole = harrell_c(of.log_hazard, of.time, of.event)
    monkeypatch.setattr(concordance, "EVENTS_AT_ONCE", 7)
    assert harrell_c(of.log_hazard, of.time, of.event) == pytest.approx(whole)
