"""Domains: planted ones are found again, the same call gives the same domains, and agreement is that of the partitions."""

import random

import numpy as np
import pytest

from stexpr.errors import MetricError
from stexpr.evaluate.domains import domain_agreement, find_domains, neighbor_graph, wanted_domains


def domains(noise: float, seed: int = 0) -> np.ndarray:
    """Three domains of 60 spots in 12 genes."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(7).normal(size=(3, 12)) * 3
    return centers.repeat(60, axis=0) + noise * rng.normal(size=(180, 12))


def test_domains_are_found_again() -> None:
    ari, nmi = domain_agreement(0.2 * domains(0.5, 1), domains(0.5, 2), resolution=0.3)
    assert (ari, nmi) == (pytest.approx(1), pytest.approx(1))
    shuffled = np.random.default_rng(0).permutation(domains(0.5, 1))
    ari, nmi = domain_agreement(shuffled, domains(0.5, 2), resolution=0.3)
    assert abs(ari) < 0.05
    assert nmi < 0.1


def test_domain_scores_are_those_of_the_partitions() -> None:
    # the prediction merges the last two domains: known partitions, so known scores
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    merged = domains(0.5, 1)
    merged[120:] = merged[60:120]
    truth, found = np.repeat([0, 1, 2], 60), np.repeat([0, 1, 1], 60)
    expected = (adjusted_rand_score(truth, found), normalized_mutual_info_score(truth, found))
    assert domain_agreement(merged, domains(0.5, 2), resolution=0.3) == pytest.approx(expected)


def test_domains_are_reproducible_and_leave_the_generators_alone() -> None:
    noisy = domains(6.0, 1), domains(6.0, 2)
    random.seed(5)
    before = random.getstate()
    first = domain_agreement(*noisy, seed=3)
    assert random.getstate() == before
    random.seed(6)
    assert domain_agreement(*noisy, seed=3) == first
    assert len({domain_agreement(*noisy, seed=seed) for seed in range(4)}) > 1


def test_domains_of_predictions_of_one_factor_do_not_hang_on_the_last_bits() -> None:
    rng = np.random.default_rng(0)
    one_factor = np.outer(np.round(rng.normal(size=180), 1), rng.normal(size=12)) + 5
    nudged = one_factor * (1 + 1e-12 * rng.normal(size=one_factor.shape))
    measured = domains(0.5, 2)
    assert domain_agreement(one_factor, measured) == domain_agreement(nudged, measured)


def test_without_domains_agreement_is_nan() -> None:
    flat = np.full((180, 12), 0.1 + 0.2)
    assert np.isnan(domain_agreement(flat, domains(0.5))).all()
    assert np.isnan(domain_agreement(domains(0.5), flat)).all()
    assert np.isnan(domain_agreement(domains(6.0, 1), domains(6.0, 2), resolution=0.0)).all()
    partly = domains(0.5)
    partly[:, :4] = 1.0
    assert domain_agreement(partly, domains(0.5, 2), resolution=0.3)[0] > 0.9


def test_domains_are_numbered_by_size() -> None:
    sizes = (20, 90, 40)
    centers = np.random.default_rng(7).normal(size=(3, 12)) * 3
    values = np.repeat(centers, sizes, axis=0) + 0.5 * np.random.default_rng(0).normal(size=(150, 12))
    found = find_domains(neighbor_graph(values), 0.3)
    np.testing.assert_array_equal(found, np.repeat([2, 0, 1], sizes))


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_as_many_domains_as_asked_for(n: int) -> None:
    graph = neighbor_graph(domains(3.0))
    found, resolution = wanted_domains(graph, n)
    assert sorted(set(found.tolist())) == list(range(n))
    np.testing.assert_array_equal(found, find_domains(graph, resolution))


def test_what_has_no_domains_is_refused() -> None:
    with pytest.raises(MetricError, match="makes 400 domains; the nearest are"):
        wanted_domains(neighbor_graph(domains(0.5)), 400)
    with pytest.raises(MetricError, match="all 12 columns are constant"):
        neighbor_graph(np.ones((30, 12)))
    broken = domains(0.5)
    broken[3, 4] = np.nan
    with pytest.raises(MetricError, match="1 of 180 spots have values that are not finite"):
        neighbor_graph(broken)
    for n in (0, 180):
        with pytest.raises(MetricError, match="below the spots"):
            neighbor_graph(domains(0.5), n_neighbors=n)
        with pytest.raises(MetricError, match="below the spots"):
            domain_agreement(domains(0.5), domains(0.5), n_neighbors=n)
