"""Time the metrics against plain loops over scipy, on one core: `python benchmarks/speed/metrics.py [--quick]`.

30,612 spots x 250 genes of float32, rows in memory one after the other as AnnData keeps them: the size of the ST-Net cohort.
Ours and the peer take turns and each keeps its best time. Times are processor seconds of the one thread: on a busy machine
the clock on the wall also counts waiting, which falls on long tasks more than on short ones and would flatter ours. Loops
that would run for minutes to hours are timed on a part said in `how`, and multiplied.

Writes benchmarks/results/speed-metrics.json; `--quick` runs a small size to see that all works, and writes nothing.
"""

import os

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1")  # before NumPy is imported

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import scipy.sparse as sp
import scipy.stats

import stexpr
from stexpr.evaluate.ceiling import noise_ceiling
from stexpr.evaluate.intervals import block_replicates, spatial_blocks
from stexpr.evaluate.metrics import pearson_per_gene, spearman_per_gene
from stexpr.panel import ExpressionTransform

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed-metrics.json"
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


def in_turns(rounds: int, *tasks: Callable[[], object]) -> list[float]:
    """Best time of each task, in processor seconds."""
    best = [np.inf] * len(tasks)
    for _ in range(rounds):
        for place, task in enumerate(tasks):
            start = time.process_time()
            task()
            best[place] = min(best[place], time.process_time() - start)
    return best


def rows(cohort: Cohort, rounds: int) -> list[dict[str, Any]]:
    x, y = cohort.predicted, cohort.measured
    np.testing.assert_allclose(pearson_per_gene(x, y), loop(scipy.stats.pearsonr, x, y), atol=1e-4)  # scipy sums in float32
    np.testing.assert_allclose(spearman_per_gene(x, y), loop(scipy.stats.spearmanr, x, y), atol=1e-9)
    size = f"{x.shape[0]:,} spots x {x.shape[1]} genes, float32"
    turns = f"processor time of one thread, taking turns, best of {rounds}"
    found = []

    def add(path: str, bar: float, ours: float, peer: float, how: str) -> None:
        found.append({"path": path, "ours": round(ours, 4), "peer": round(peer, 4), "ratio": round(peer / ours, 1), "bar": bar})
        found[-1] |= {"unit": "CPU s", "device": device(), "versions": versions(), "how": f"{size}; {how}; {turns}"}
        print(f"{path:28} ours {ours:9.3f} s   peer {peer:11.3f} s   ratio {peer / ours:8.1f}   bar {bar}")

    ours, peer = in_turns(rounds, lambda: pearson_per_gene(x, y), lambda: loop(scipy.stats.pearsonr, x, y))
    add("pearson_per_gene", 5, ours, peer, "peer: scipy.stats.pearsonr, a loop over genes")
    ours, peer = in_turns(rounds, lambda: spearman_per_gene(x, y), lambda: loop(scipy.stats.spearmanr, x, y))
    add("spearman_per_gene", 1.3, ours, peer, "peer: scipy.stats.spearmanr, a loop over genes")

    ours, one = in_turns(
        rounds,
        lambda: block_replicates(x, y, cohort.blocks, cohort.strata, n=REPLICATES),
        lambda: replicate(x, y, cohort),
    )
    how = f"peer: one replicate of all genes by a scipy.stats.pearsonr loop took {one:.3f} s, times {REPLICATES} (extrapolated)"
    add("block_replicates", 50, ours, one * REPLICATES, how)

    sides = split(cohort)
    ours, one_split, one = in_turns(
        rounds,
        lambda: noise_ceiling(cohort.counts, cohort.library, TRANSFORM, cohort.blocks, repeats=REPEATS, replicates=REPLICATES),
        lambda: split(cohort),
        lambda: replicate(*sides, cohort),
    )
    how = (
        f"{REPEATS} splits, {REPLICATES} replicates; peer: NumPy and a scipy.stats.pearsonr loop took {one_split:.3f} s for a "
        f"split, {one:.3f} s for one replicate of it; (split + {REPLICATES} replicates) x {REPEATS} (extrapolated)"
    )
    add("noise_ceiling", 50, ours, REPEATS * (one_split + REPLICATES * one), how)
    return found


def device() -> str:
    model = next((line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.machine())
    return f"{model}, 1 of {os.cpu_count()} cores, shared with other work"


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def versions() -> dict[str, str]:
    found = {"stexpr": stexpr, "numpy": np, "scipy": scipy}
    return {"python": platform.python_version(), **{name: module.__version__ for name, module in found.items()}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small size, nothing written")
    if parser.parse_args().quick:
        rows(Cohort(3000, 50), 2)
    else:
        found = rows(Cohort(30612, 250), 7)
        RESULTS.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
