"""Time the metrics against plain loops over scipy, on one core: `python benchmarks/speed/metrics.py [--quick]`.

30,612 spots x 250 genes of float32, rows in memory one after the other as AnnData keeps them: the size of the ST-Net cohort.
Loops that would run for minutes to hours are timed on a part said in `how`, and multiplied. `--quick` runs a small size.
"""

import comparison  # isort: split

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy
import scipy.sparse as sp
import scipy.stats

from stexpr.evaluate.ceiling import noise_ceiling
from stexpr.evaluate.intervals import block_replicates, spatial_blocks
from stexpr.evaluate.metrics import pearson_per_gene, spearman_per_gene
from stexpr.panel import ExpressionTransform

REPLICATES, REPEATS = 1000, 10
TRANSFORM = ExpressionTransform()


class Cohort:
    """Counts with depths and genes like those of real sections, and a prediction that follows them."""

    def __init__(self, spots: int, genes: int) -> None:
        rng = np.random.default_rng(0)
        depth = 8000 * np.exp(rng.normal(0, 0.6, spots))
        share = np.exp(rng.normal(0.5, 1, genes)) * rng.gamma(2, 0.5, (spots, genes)) / 8000
        self.dense = rng.poisson(share * depth[:, None])
        self.counts = sp.csr_matrix(self.dense.astype(np.float32))
        self.library = self.dense.sum(axis=1) + rng.poisson(depth).astype(np.float64)
        self.measured = TRANSFORM(self.dense.astype(np.float32), self.library.astype(np.float32))
        self.predicted = (self.measured + rng.normal(size=self.measured.shape)).astype(np.float32)
        self.blocks = spatial_blocks(*rng.uniform(0, 6000, (2, spots)))
        self.strata = ["section"] * spots

    def resampled(self, rng: np.random.Generator) -> np.ndarray:
        """Rows of one bootstrap replicate."""
        n = int(self.blocks.max()) + 1
        return np.repeat(np.arange(len(self.blocks)), np.bincount(rng.integers(0, n, n), minlength=n)[self.blocks])


def loop(statistic: Callable[..., Any], predicted: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """What most scripts do."""
    return np.array([statistic(predicted[:, gene], measured[:, gene])[0] for gene in range(predicted.shape[1])])


def replicate(predicted: np.ndarray, measured: np.ndarray, cohort: Cohort) -> np.ndarray:
    rows = cohort.resampled(np.random.default_rng(0))
    return loop(scipy.stats.pearsonr, predicted[rows], measured[rows])


def split(cohort: Cohort) -> tuple[np.ndarray, np.ndarray]:
    """One split of the noise ceiling by NumPy and scipy: thin, transform, correlate, once more without depth."""
    rng = np.random.default_rng(0)
    half = rng.binomial(cohort.dense, 0.5)
    rest = (cohort.library - cohort.dense.sum(axis=1)).astype(np.int64)
    half_rest = rng.binomial(rest, 0.5)
    sides = [
        TRANSFORM(counts.astype(np.float32), (others + counts.sum(axis=1)).astype(np.float32))
        for counts, others in ((half, half_rest), (cohort.dense - half, rest - half_rest))
    ]
    loop(scipy.stats.pearsonr, *sides)
    design = np.column_stack([np.ones(len(rest)), np.log(cohort.library)]).astype(np.float32)
    loop(scipy.stats.pearsonr, *(values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in sides))
    return sides[0], sides[1]


def rows(quick: bool) -> list[comparison.Row]:
    cohort, rounds = (Cohort(3000, 50), 2) if quick else (Cohort(30612, 250), 7)
    x, y = cohort.predicted, cohort.measured
    np.testing.assert_allclose(pearson_per_gene(x, y), loop(scipy.stats.pearsonr, x, y), atol=1e-4)  # scipy sums in float32
    np.testing.assert_allclose(spearman_per_gene(x, y), loop(scipy.stats.spearmanr, x, y), atol=1e-9)
    found = []

    def add(path: str, bar: float, ours: float, peer: float, how: str, call: Callable[[], object]) -> None:
        size = f"{x.shape[0]:,} spots x {x.shape[1]} genes, float32; peer: {how}; medians of {rounds} turns"
        packages = ("stexpr", "numpy", "scipy")
        profile = comparison.profiled(call)
        row = comparison.compared(path, ours=ours, peer=peer, at_least=bar, how=size, profile=profile, packages=packages)
        found.append(row)

    def pearson() -> object:
        return pearson_per_gene(x, y)

    def spearman() -> object:
        return spearman_per_gene(x, y)

    def bootstrap() -> object:
        return block_replicates(x, y, cohort.blocks, cohort.strata, n=REPLICATES)

    def ceiling() -> object:
        return noise_ceiling(cohort.counts, cohort.library, TRANSFORM, cohort.blocks, repeats=REPEATS, replicates=REPLICATES)

    ours, peer = comparison.in_turns(rounds, pearson, lambda: loop(scipy.stats.pearsonr, x, y))
    add("pearson_per_gene", 5, ours, peer, "scipy.stats.pearsonr, a loop over genes", pearson)
    ours, peer = comparison.in_turns(rounds, spearman, lambda: loop(scipy.stats.spearmanr, x, y))
    add("spearman_per_gene", 1.3, ours, peer, "scipy.stats.spearmanr, a loop over genes", spearman)
    ours, one = comparison.in_turns(rounds, bootstrap, lambda: replicate(x, y, cohort))
    how = f"one replicate of all genes by a scipy.stats.pearsonr loop took {one:.3f} s, times {REPLICATES} (extrapolated)"
    add("block_replicates", 50, ours, one * REPLICATES, how, bootstrap)
    sides = split(cohort)
    ours, one_split, one = comparison.in_turns(rounds, ceiling, lambda: split(cohort), lambda: replicate(*sides, cohort))
    how = (
        f"{REPEATS} splits, {REPLICATES} replicates: NumPy and a scipy.stats.pearsonr loop took {one_split:.3f} s for a "
        f"split, {one:.3f} s for one replicate of it; (split + {REPLICATES} replicates) x {REPEATS} (extrapolated)"
    )
    add("noise_ceiling", 50, ours, REPEATS * (one_split + REPLICATES * one), how, ceiling)
    return found


if __name__ == "__main__":
    comparison.main("metrics", rows, __doc__)
