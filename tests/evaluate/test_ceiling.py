"""The ceiling is the correlation of a measurement with its truth, and coins are fair."""

import tracemalloc
from collections.abc import Iterator

import jaxtyping
import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.errors import MetricError
from stexpr.evaluate.ceiling import Ceiling, _thin, noise_ceiling
from stexpr.evaluate.metrics import pearson_per_gene
from stexpr.panel import ExpressionTransform

TRANSFORM = ExpressionTransform()
SPOTS, DEPTH = 300, 5000
BLOCKS = np.arange(SPOTS) // 10


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Users run without shape checks: what they see for unlike shapes is our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def planted(log_sd: float, *, cv: float = 0.6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Depth of each spot, and the share of each gene in its library: the truth."""
    rng = np.random.default_rng(seed)
    depth = DEPTH * np.exp(rng.normal(0, log_sd, SPOTS) - log_sd**2 / 2)
    return depth, np.geomspace(0.2, 20, 40) / DEPTH * rng.gamma(cv**-2, cv**2, (SPOTS, 40))


def measure(depth: np.ndarray, share: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, 1])
    counts = rng.poisson(share * depth[:, None])
    rest = 1 + rng.poisson(depth * (1 - share.sum(axis=1)))
    return counts, (counts.sum(axis=1) + rest).astype(np.float64)


def ceiling(counts: np.ndarray, library: np.ndarray, **choices: int) -> Ceiling:
    return noise_ceiling(counts, library, TRANSFORM, BLOCKS, **{"repeats": 5, "replicates": 200, **choices})


def errors(log_sd: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Error of both ceilings and whether the interval holds the truth, over cohorts x genes."""
    value, blind, held = [], [], []
    for seed in range(6):
        depth, share = planted(log_sd, seed=seed)
        counts, library = measure(depth, share, seed)
        truth = pearson_per_gene(TRANSFORM(counts, library), np.log1p(share * TRANSFORM.target_sum))
        found = ceiling(counts, library)
        value.append(found.value - truth)
        blind.append(found.depth_blind - truth)
        held.append((found.low <= truth) & (truth <= found.high))
    return np.array(value), np.array(blind), np.array(held)


def test_the_ceiling_is_the_correlation_with_the_truth() -> None:
    value, blind, held = errors(0.3)
    assert abs(value.mean()) < 0.03
    assert abs(blind.mean()) < 0.03
    # genes well measured agree one by one, the worst of 6 cohorts included
    assert np.abs(value[:, 20:].mean(axis=0)).max() < 0.08
    assert np.abs(value[:, 20:]).max() < 0.35
    assert 0.85 < held.mean() < 0.99


def test_unlike_depths_overstate_it_as_the_docstring_says() -> None:
    value, blind, _ = errors(0.8)
    assert 0.05 < value.mean() < 0.11
    assert abs(blind.mean()) < 0.035


def test_two_measurements_of_one_truth_agree_at_the_square_of_the_ceiling() -> None:
    depth, share = planted(0.3)
    first, second = (TRANSFORM(*measure(depth, share, seed)) for seed in (1, 2))
    squared = ceiling(*measure(depth, share, 1), repeats=20).value ** 2
    difference = pearson_per_gene(first, second) - squared
    assert abs(difference.mean()) < 0.03
    assert np.abs(difference[20:]).max() < 0.2


def test_deeper_sequencing_raises_it() -> None:
    depth, share = planted(0.3)
    means = [ceiling(*measure(depth * factor, share)).value[10:].mean() for factor in (0.3, 1, 3, 10)]
    assert (np.diff(means) > 0.03).all()
    assert means[-1] > 0.9


def test_nothing_shared_is_a_ceiling_of_zero() -> None:
    depth = np.full(SPOTS, 1000.0)
    counts, library = measure(depth, np.full((SPOTS, 200), 1e-3))  # Poisson noise about one mean
    found = ceiling(counts, library)
    assert 0.3 < (found.value == 0).mean() < 0.7  # half of the chance correlations are negative
    assert (found.low == 0).mean() > 0.9
    assert (found.high > 0).mean() > 0.9


def test_depth_alone_is_signal_unless_blind() -> None:
    depth, _ = planted(0.8)
    counts, library = measure(depth, np.full((SPOTS, 20), 4 / DEPTH))
    log_counts = ExpressionTransform("log1p")  # not normalized: depth is all there is
    found = noise_ceiling(counts, library, log_counts, BLOCKS, repeats=5, replicates=20)
    assert found.value.mean() > 0.6
    assert found.depth_blind.mean() < found.value.mean() / 2


def test_values_are_correlations_of_halves_and_of_residuals() -> None:
    depth, share = planted(0.8)
    counts, library = measure(depth, np.tile(share / 3, 3))  # more genes than are transformed at a time
    seen: list[np.ndarray] = []

    def watched(values: np.ndarray, half: np.ndarray) -> np.ndarray:
        seen.append(TRANSFORM(values, half))
        return seen[-1]

    found = noise_ceiling(counts, library, watched, BLOCKS, repeats=1, replicates=10)
    halves = [np.hstack(seen[side::2]).astype(np.float64) for side in (0, 1)]
    design = np.column_stack([np.ones(SPOTS), np.log(library)])
    one, other = (values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in halves)
    for values, (a, b) in ((found.value, halves), (found.depth_blind, (one, other))):
        h = np.maximum([scipy.stats.pearsonr(a[:, i], b[:, i])[0] for i in range(120)], 0)
        np.testing.assert_allclose(values, np.sqrt(2 * h / (1 + h)), atol=1e-5)


def test_without_spread_in_depth_blind_is_plain() -> None:
    counts, library = measure(*planted(0.3))
    library = np.full(SPOTS, library.max())
    found = ceiling(counts, library)
    np.testing.assert_array_equal(found.value, found.depth_blind)


def test_each_half_has_its_own_counts_and_library() -> None:
    counts, library = measure(*planted(0.8))
    halves: list[tuple[np.ndarray, np.ndarray]] = []

    def watched(values: np.ndarray, half: np.ndarray) -> np.ndarray:
        halves.append((values, half))
        return TRANSFORM(values, half)

    noise_ceiling(counts, library, watched, BLOCKS, repeats=2, replicates=10)
    for (a, depth_a), (b, depth_b) in (halves[:2], halves[2:]):
        np.testing.assert_array_equal(a + b, counts)
        np.testing.assert_array_equal(depth_a + depth_b, library)
        assert (depth_a >= a.sum(axis=1)).all()
        assert np.abs(depth_a - library / 2).max() < 5 * np.sqrt(library.max() / 4)
        assert np.std((depth_a - library / 2) / np.sqrt(library / 4)) == pytest.approx(1, abs=0.15)
    assert not np.array_equal(halves[0][0], halves[2][0])


@pytest.mark.parametrize("n", [1, 2, 7, 31, 63, 64, 65, 300])
def test_halves_are_binomial(n: int) -> None:
    tosses = 200_000
    taken = _thin(np.full(tosses, n), np.random.default_rng(n))
    assert taken.min() >= 0
    assert taken.max() <= n
    expected = scipy.stats.binom.pmf(np.arange(n + 1), n, 0.5) * tosses
    # a chi-square needs 5 expected in each cell: the tails go together
    low, high = (bound(np.flatnonzero(expected >= 5)) for bound in (min, max))
    seen, wanted = (
        np.bincount(np.clip(np.arange(n + 1), low, high) - low, weights=w)
        for w in (np.bincount(taken, minlength=n + 1), expected)
    )
    assert scipy.stats.chisquare(seen, wanted).pvalue > 1e-3
    assert np.corrcoef(taken[:-1], taken[1:])[0, 1] == pytest.approx(0, abs=0.01)  # neighbors do not share bits


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(0, 200), min_size=0, max_size=300), st.integers(0, 5))
def test_coins_stay_in_place(values: list[int], seed: int) -> None:
    counts = np.array(values, dtype=np.int64)
    taken = _thin(counts, np.random.default_rng(seed))
    assert (taken >= 0).all()
    assert (taken <= counts).all()
    assert taken.shape == counts.shape


def test_sparse_is_dense_and_seeds_are_kept() -> None:
    counts, library = measure(*planted(0.3))
    dense = ceiling(counts, library)
    parts = sp.csr_matrix(np.hstack([counts // 2, counts - counts // 2]))
    twice = sp.csr_matrix((parts.data, parts.indices % 40, parts.indptr), shape=counts.shape)  # two entries in one place
    for same in (twice, sp.csr_matrix(counts), sp.csr_array(counts.astype(np.float32)), np.asfortranarray(counts)):
        again = ceiling(same, library)
        for name in ("value", "low", "high", "depth_blind"):
            np.testing.assert_array_equal(getattr(again, name), getattr(dense, name))
    other = ceiling(counts, library, seed=1)
    assert not np.array_equal(other.value, dense.value)
    assert (
        np.abs(ceiling(counts, library, repeats=40).value - ceiling(counts, library, repeats=40, seed=1).value)[20:].max() < 0.1
    )


def test_counts_given_are_not_written_to(unchecked: None) -> None:
    counts, library = measure(*planted(0.3))
    twice = sp.csc_matrix((np.ones(4), np.array([7, 7, 2, 2]), np.r_[0, 4, np.full(39, 4)]), shape=counts.shape)
    ceiling(twice, library + 5)
    assert twice.indices.tolist() == [7, 7, 2, 2]
    assert twice.data.tolist() == [1, 1, 1, 1]


def test_the_interval_holds_its_point_and_knows_of_blocks() -> None:
    depth, share = planted(0.3)
    smooth = share[np.arange(SPOTS) // 10]  # neighbors alike: 30 independent values, not 300
    counts, library = measure(depth, smooth)
    by_block = ceiling(counts, library)
    assert ((by_block.low >= 0) & (by_block.low <= by_block.value)).all()
    assert ((by_block.value <= by_block.high) & (by_block.high <= 1)).all()
    by_spot = noise_ceiling(counts, library, TRANSFORM, np.arange(SPOTS), repeats=5, replicates=200)
    width = [np.median((found.high - found.low)[20:]) for found in (by_block, by_spot)]
    assert width[0] > 1.2 * width[1]


def test_the_interval_is_moved_to_its_point() -> None:
    depth, share = planted(0.3)
    counts, library = measure(depth, share[np.arange(SPOTS) // 50])
    found = noise_ceiling(counts, library, TRANSFORM, np.arange(SPOTS) // 50, repeats=5, replicates=400)
    low, point, high = (r**2 / (2 - r**2) for r in (found.low, found.value, found.high))
    inside = (found.low > 0) & (found.high < 1)
    assert inside.sum() >= 5
    # six blocks drawn of six hold four different ones: unmoved, all replicates would lie below
    assert abs(((low + high) / 2 - point)[inside].mean()) < 0.13 * (high - low)[inside].mean()


def test_the_interval_covers_the_draw_of_splits() -> None:
    counts, library = measure(*planted(0.3))
    one_block = np.zeros(SPOTS, dtype=np.int64)  # nothing to resample but the splits
    several = noise_ceiling(counts, library, TRANSFORM, one_block, repeats=5, replicates=200)
    assert (several.high - several.low > 0.01).mean() > 0.9
    single = noise_ceiling(counts, library, TRANSFORM, one_block, repeats=1, replicates=20)
    np.testing.assert_allclose(single.low, single.high, atol=1e-6)


def test_what_is_undefined_is_nan_in_its_place() -> None:
    counts, library = measure(*planted(0.3))
    library += 10
    counts[:, 3] = 0
    counts[:, 5] = 0
    counts[7, 5] = 2  # some splits leave a half without it, the others would call it perfectly reproducible
    found = ceiling(counts, library, repeats=20)
    for values in (found.value, found.low, found.high, found.depth_blind):
        assert np.flatnonzero(np.isnan(values)).tolist() == [3, 5]


def test_a_spot_with_a_single_count_stays() -> None:
    counts, library = measure(*planted(0.3))
    counts[:20] = 0
    counts[:20, 30] = 1
    library[:20] = 1
    found = ceiling(counts, library)
    assert np.isfinite(found.value).all()


def test_what_is_refused(unchecked: None) -> None:
    counts, library = measure(*planted(0.3))
    with pytest.raises(MetricError, match="at least 2"):
        noise_ceiling(counts[:1], library[:1], TRANSFORM, BLOCKS[:1])
    for bad in (-1.0, 0.5, np.nan, np.inf):
        broken = counts.astype(np.float64)
        broken[4, 4] = bad
        with pytest.raises(MetricError, match="raw counts"):
            ceiling(broken, library)
    for bad in (0.0, counts[9].sum() - 1.0, library[9] + 0.5, np.nan, np.inf):
        broken = library.copy()
        broken[9] = bad
        with pytest.raises(MetricError, match=r"library of 1 of 300 spots .*first: spot 9"):
            ceiling(counts, broken)


def test_many_genes_need_little_memory() -> None:
    genes = 1000
    counts = sp.random_array((SPOTS, genes), density=0.05, rng=np.random.default_rng(0), format="csr")
    counts.data = np.ceil(counts.data * 3)
    library = np.asarray(counts.sum(axis=1)).ravel() + 1000
    tracemalloc.start()
    noise_ceiling(counts, library, TRANSFORM, BLOCKS, repeats=1, replicates=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * SPOTS * genes * 4  # less than both halves in full
