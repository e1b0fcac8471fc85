"""The spatial null keeps its level where the naive test does not, finds what is there, and equals exact enumeration."""

from collections.abc import Iterator
from itertools import product

import jaxtyping
import numpy as np
import pytest
import scipy.stats
from scipy.spatial.distance import cdist

from stexpr.errors import MetricError
from stexpr.evaluate.metrics import pearson_per_gene
from stexpr.evaluate.spatial_null import SpatialModes, spatial_modes, spatial_null_p

PAIRS = 1500
LEVEL = 0.05


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Users run without shape checks: what they see for unlike shapes is our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def tissue(shape: str) -> np.ndarray:
    """Spot positions in pitches: a jittered array with missing spots, or one torn in two."""
    rng = np.random.default_rng(0)
    xy = np.stack(np.meshgrid(np.arange(17.0), np.arange(15.0)), axis=-1).reshape(-1, 2)
    xy = xy[rng.random(len(xy)) < 0.93] if shape == "holes" else xy[np.abs(xy[:, 0] - 8) > 2]
    return xy + rng.normal(0, 0.05, xy.shape)


def unrelated(xy: np.ndarray, kind: str, seed: int) -> np.ndarray:
    """One map per column, all independent of each other."""
    rng = np.random.default_rng(seed)
    if kind == "gradient":
        angle = rng.uniform(0, 2 * np.pi, PAIRS)
        slope = xy @ np.array([np.cos(angle), np.sin(angle)])
        return slope / slope.std(axis=0) + rng.normal(size=slope.shape)
    covariance = np.exp(-((cdist(xy, xy) / float(kind)) ** 2) / 2) + 1e-6 * np.eye(len(xy))
    return np.linalg.cholesky(covariance) @ rng.normal(size=(len(xy), PAIRS))


def naive_p(predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    r, n = pearson_per_gene(predicted, measured), len(predicted)
    return scipy.stats.t.sf(r * np.sqrt((n - 2) / (1 - r**2)), n - 2)


@pytest.mark.parametrize("shape", ["holes", "torn in two"])
@pytest.mark.parametrize("kind", ["2", "5", "gradient"])
def test_unrelated_smooth_maps_are_not_called_skill(shape: str, kind: str) -> None:
    xy = tissue(shape)
    predicted, measured = unrelated(xy, kind, 1), unrelated(xy, kind, 2)
    null = spatial_null_p(predicted, measured, spatial_modes(xy[:, 0], xy[:, 1]), n=499)
    assert (naive_p(predicted, measured) <= LEVEL).mean() > 0.25
    assert 0.03 <= (null.p <= LEVEL).mean() <= 0.085  # SE 0.006
    assert (null.p <= 0.01).mean() <= 0.03
    assert 0.4 < null.p.mean() < 0.6


def test_a_related_map_is_found() -> None:
    xy = tissue("holes")
    measured, error = unrelated(xy, "3", 1), unrelated(xy, "3", 2)
    modes = spatial_modes(xy[:, 0], xy[:, 1])
    noise = np.random.default_rng(0).normal(size=measured.shape)
    assert (spatial_null_p(measured + 0.7 * error, measured + noise, modes, n=499).p <= LEVEL).mean() > 0.9
    opposite = spatial_null_p(-measured - 0.7 * error, measured + noise, modes, n=499)
    assert (opposite.p > 0.9).mean() > 0.9
    assert (opposite.z < 0).mean() > 0.95


def test_modes_are_a_basis_of_all_maps_of_mean_zero() -> None:
    xy = tissue("holes")
    modes = spatial_modes(xy[:, 0], xy[:, 1])
    np.testing.assert_allclose(modes.vectors.T @ modes.vectors, np.eye(len(xy) - 1), atol=1e-10)
    np.testing.assert_allclose(modes.vectors.sum(axis=0), 0, atol=1e-9)
    distance = -cdist(xy, xy)
    smoothness = np.einsum("sk,st,tk->k", modes.vectors, distance, modes.vectors)
    assert (np.diff(smoothness) > 0).all()  # eigenvectors in order


def test_spots_in_one_place_leave_no_constant_among_the_modes() -> None:
    x, y = np.r_[np.arange(6.0), 0, 0], np.r_[np.zeros(6), 0, 0]
    modes = spatial_modes(x, y)
    assert modes.vectors.shape == (8, 7)
    np.testing.assert_allclose(modes.vectors.sum(axis=0), 0, atol=1e-9)


def test_signs_of_few_modes_equal_enumeration() -> None:
    rng = np.random.default_rng(3)
    xy = rng.uniform(size=(9, 2))
    modes = spatial_modes(xy[:, 0], xy[:, 1])
    assert modes.starts.tolist() == list(range(8))
    predicted, measured = rng.normal(size=(2, 9, 4))
    a, b = (modes.vectors.T @ (v - v.mean(axis=0)) / np.linalg.norm(v - v.mean(axis=0), axis=0) for v in (predicted, measured))
    signs = np.array(list(product([-1, 1], repeat=8)))
    every = signs @ (a * b)
    null = spatial_null_p(predicted, measured, modes, n=20_000)
    r = pearson_per_gene(predicted, measured)
    np.testing.assert_allclose(null.p, (every >= r - 1e-9).mean(axis=0), atol=0.015)
    np.testing.assert_allclose(null.z, r / every.std(axis=0), rtol=1e-9)


def test_a_single_pattern_is_no_evidence() -> None:
    # Both maps are one mode: half of all surrogates repeat the observed r exactly.
    rng = np.random.default_rng(0)
    xy = rng.uniform(size=(40, 2))
    modes = spatial_modes(xy[:, 0], xy[:, 1])
    wave = modes.vectors[:, [-1]]
    np.testing.assert_allclose(spatial_null_p(3 * wave + 1, wave, modes).p, 0.5, atol=0.06)


def test_symmetric_sections_rotate_what_symmetry_makes_interchangeable() -> None:
    x, y = (axis.ravel() for axis in np.meshgrid(np.arange(8.0), np.arange(8.0)))
    modes = spatial_modes(x, y)
    size = np.diff(modes.starts, append=63)
    assert set(size) == {1, 2}
    assert size[-1] == 2  # the two directions
    # Gradients at 60 degrees: r = 0.5, which a random direction exceeds one time in three; signs would never or half the time.
    p = spatial_null_p(modes.vectors[:, [-1]], modes.vectors[:, -2:] @ [[np.sqrt(0.75)], [0.5]], modes, n=4000).p
    np.testing.assert_allclose(p, 1 / 3, atol=0.03)


@pytest.mark.parametrize("layout", ["square", "holes"])
def test_p_does_not_depend_on_the_order_of_spots(layout: str) -> None:
    xy = (
        np.stack(np.meshgrid(np.arange(9.0), np.arange(9.0)), axis=-1).reshape(-1, 2) if layout == "square" else tissue("holes")
    )
    rng = np.random.default_rng(0)
    measured = rng.normal(size=(len(xy), 6)) + xy[:, :1] / 4
    predicted = measured + 3 * rng.normal(size=measured.shape)
    order = rng.permutation(len(xy))
    here = spatial_null_p(predicted, measured, spatial_modes(xy[:, 0], xy[:, 1]))
    there = spatial_null_p(predicted[order], measured[order], spatial_modes(xy[order, 0], xy[order, 1]))
    np.testing.assert_allclose(there.z, here.z, rtol=1e-6)
    np.testing.assert_array_equal(there.p, here.p)


def test_draws_follow_the_seed_and_are_shared_by_genes() -> None:
    xy = tissue("holes")
    modes = spatial_modes(xy[:, 0], xy[:, 1])
    predicted, measured = np.random.default_rng(0).normal(size=(2, len(xy), 5))
    first = spatial_null_p(predicted, measured, modes, seed=1)
    np.testing.assert_array_equal(spatial_null_p(predicted, measured, modes, seed=1).p, first.p)
    assert (spatial_null_p(predicted, measured, modes, seed=2).p != first.p).any()
    one = spatial_null_p(predicted[:, [3]], measured[:, [3]], modes, seed=1)
    np.testing.assert_array_equal(one.p, first.p[[3]])
    scaled = spatial_null_p(predicted * 7 + 2, measured, modes, seed=1)
    np.testing.assert_array_equal(scaled.p, first.p)
    assert (spatial_null_p(measured, measured, modes, n=99).p == 0.01).all()


def test_constant_genes_are_nan_in_their_place() -> None:
    xy = tissue("holes")
    predicted, measured = np.random.default_rng(0).normal(size=(2, len(xy), 3))
    predicted[:, 0] = measured[:, 2] = 0.1 + 0.2
    null = spatial_null_p(predicted, measured, spatial_modes(xy[:, 0], xy[:, 1]))
    for values in (null.p, null.z):
        assert np.isnan(values).tolist() == [True, False, True]


def test_what_is_refused(unchecked: None) -> None:
    xy = tissue("holes")
    modes = spatial_modes(xy[:, 0], xy[:, 1])
    good = np.random.default_rng(0).normal(size=(len(xy), 2))
    with pytest.raises(MetricError, match=r"2 spots; the spatial null takes 3 to 6000"):
        spatial_modes(np.array([0.0, 1.0]), np.zeros(2))
    with pytest.raises(MetricError, match=r"6001 spots.*Average neighboring spots"):
        spatial_modes(np.arange(6001.0), np.zeros(6001))
    with pytest.raises(MetricError, match="no finite position"):
        spatial_modes(np.array([0.0, 1.0, np.nan]), np.zeros(3))
    with pytest.raises(MetricError, match="take those of this section"):
        spatial_null_p(good[1:], good[1:], modes)
    with pytest.raises(MetricError, match="at least 1 is needed"):
        spatial_null_p(good, good, modes, n=0)
    with pytest.raises(MetricError, match="not finite"):
        spatial_null_p(good * np.nan, good, SpatialModes(modes.vectors, modes.starts))
