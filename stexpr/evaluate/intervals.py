"""How far a score may be off: the patient is the unit, and where patients are too few the interval says what it covers.

From 10 patients a bootstrap over patients, from 6 a t-interval over patients' values, below that a bootstrap over blocks of
neighboring spots, which speaks of these sections only. Neighboring spots resemble each other, so resampling single spots
would pretend to more independent observations than a section holds.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32, Int
from scipy import stats

from stexpr.errors import MetricError
from stexpr.evaluate.metrics import constant_per_gene

__all__ = ["Interval", "block_replicates", "patient_interval", "percentile_interval", "spatial_blocks", "t_interval"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

LEVEL = 0.95
REPLICATES = 1000
T_FROM, BOOTSTRAP_FROM = 6, 10
BLOCKS = 30
SPOTS_PER_BLOCK = 4
GENES_AT_ONCE = 512

BOOTSTRAP = "95 % bootstrap over patients"
T = "95 % t over patients"
THESE_SECTIONS = "95 % spatial-block bootstrap, these sections only"


@dataclass(frozen=True)
class Interval:
    """Two bounds and, in words, what they cover; NaN where there is no interval."""

    low: float
    high: float
    kind: str


def spatial_blocks(x_um: Float[Array, "S"], y_um: Float[Array, "S"]) -> Int[Array, "S"]:
    """Divide a section into square blocks of neighboring spots.

    The side is the one, among a fine geometric series, that gives the number of occupied blocks closest to 30, or to a
    quarter of the spots where that is fewer: enough blocks for a bootstrap, enough spots in each to keep neighbors together.
    Structure larger than a block still makes the interval too narrow, more so the smoother a gene is over the tissue.

    Args:
        x_um: Spot centers, microns.
        y_um: Spot centers, microns.

    Returns:
        The block of each spot, numbered from 0 without gaps.
    """
    x, y = x_um - x_um.min(), y_um - y_um.min()
    extent = max(float(x.max()), float(y.max()))
    if extent == 0:
        return np.zeros(len(x), dtype=np.int64)
    target = min(BLOCKS, max(2, len(x) // SPOTS_PER_BLOCK))

    def blocks(side: float) -> Int[Array, "S"]:
        cells = np.floor(x / side).astype(np.int64) * (1 << 20) + np.floor(y / side).astype(np.int64)
        return np.unique(cells, return_inverse=True)[1].astype(np.int64)

    # From one block (the largest side exceeds the extent) down to 1/64 of the extent, in steps of 5 %.
    sides = 1.001 * extent * 0.95 ** np.arange(82)
    return min((blocks(side) for side in sides), key=lambda found: abs(int(found.max()) + 1 - target))


def block_replicates(
    predicted: Float[Array, "S G"],
    measured: Float[Array, "S G"],
    blocks: Int[Array, "S"],
    strata: Sequence[str],
    *,
    n: int = REPLICATES,
    seed: int = 0,
) -> Float32[Array, "G R"]:
    """Recompute every gene's correlation on resampled blocks of spots.

    Each stratum (a section) draws as many of its blocks as it has, with replacement. The draw depends on the stratum's
    name, its number of blocks and the seed alone, so all models are resampled alike and their replicates can be paired.

    Args:
        predicted: Model output.
        measured: Ground truth.
        blocks: Block of each spot, from 0 within its stratum.
        strata: Section of each spot.
        n: Number of replicates.
        seed: Recorded with the scores.

    Returns:
        Correlations as they enter a ranking mean: NaN where the measured values of a replicate are constant, 0 where
        only the predicted ones are.

    Raises:
        MetricError: No spot.
    """
    if not len(predicted):
        raise MetricError("no spot to resample")
    names = np.asarray(strata)
    spot_block = np.empty(len(blocks), dtype=np.int64)
    draws: list[Int[Array, "R blocks"]] = []
    for name in dict.fromkeys(strata):
        inside = names == name
        n_blocks = int(blocks[inside].max()) + 1
        spot_block[inside] = blocks[inside] + sum(draw.shape[1] for draw in draws)
        entropy = int.from_bytes(hashlib.sha256(str(name).encode()).digest()[:8])
        rng = np.random.default_rng([seed, entropy])
        draws.append(rng.multinomial(n_blocks, np.full(n_blocks, 1 / n_blocks), size=n))
    weights = np.hstack(draws).astype(np.float64)  # (R, blocks)
    members = sp.csr_matrix((np.ones(len(blocks)), (spot_block, np.arange(len(blocks)))), shape=(weights.shape[1], len(blocks)))
    starts = range(0, predicted.shape[1], GENES_AT_ONCE)
    columns = [slice(start, start + GENES_AT_ONCE) for start in starts]
    parts = [_weighted_pearson(predicted[:, genes], measured[:, genes], members, weights) for genes in columns]
    return np.vstack(parts).astype(np.float32)


def _weighted_pearson(
    predicted: Float[Array, "S G"], measured: Float[Array, "S G"], members: sp.csr_matrix, weights: Float[Array, "R blocks"]
) -> Float[Array, "G R"]:
    """Correlate under block weights: sums per block once, then one matrix product per moment."""
    x, y = _centered(predicted), _centered(measured)
    n = (weights @ np.asarray(members.sum(axis=1)))[:, [0]]  # (R, 1)

    def mean(values: Float[Array, "S G"]) -> Float[Array, "R G"]:
        return np.asarray(np.asarray(weights @ (members @ values)) / n)

    mx, my, xx, yy = mean(x), mean(y), mean(x * x), mean(y * y)
    var_x, var_y = xx - mx**2, yy - my**2
    # The second moment includes the squared mean: a variance far below it is what rounding leaves of zero.
    flat_x, flat_y = var_x <= 1e-10 * xx, var_y <= 1e-10 * yy
    scale = np.sqrt(np.where(flat_x | flat_y, 1, var_x * var_y))
    r = np.clip((mean(x * y) - mx * my) / scale, -1, 1)
    return np.where(flat_y, np.nan, np.where(flat_x, 0.0, r)).T


def _centered(values: Float[Array, "S G"]) -> Float[Array, "S G"]:
    # A constant gene becomes exactly zero, so that the last bits of a collapsed network cannot correlate.
    return np.where(constant_per_gene(values), 0.0, values - values.mean(axis=0, dtype=np.float64))


def percentile_interval(replicates: Float[Array, "R"], kind: str, center: float | None = None) -> Interval:
    """Take the central 95 % of bootstrap replicates.

    Args:
        replicates: The statistic on resampled data; NaN where undefined.
        kind: What the interval covers.
        center: The point estimate, to move the replicates' mean there. Resampled blocks hold less variety than their
            section, which lowers r in all replicates; unmoved, the interval could miss its own point.

    Returns:
        The interval; NaN bounds when no replicate is defined.
    """
    defined = replicates[~np.isnan(replicates)].astype(np.float64)
    if not defined.size:
        return Interval(np.nan, np.nan, kind)
    shift = 0.0 if center is None else center - defined.mean()
    low, high = np.quantile(defined, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) + shift
    return Interval(float(low), float(high), kind)


def t_interval(values: Float[Array, "P"], center: float | None = None) -> Interval:
    """Student's interval for a mean over patients.

    Args:
        values: One value per patient.
        center: The point estimate, where it is not the plain mean of `values` (folds with unlike panels).

    Returns:
        The interval; NaN bounds below two patients.
    """
    if len(values) < 2:
        return Interval(np.nan, np.nan, T)
    middle = float(values.mean()) if center is None else center
    half = float(stats.t.ppf((1 + LEVEL) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(middle - half, middle + half, T)


def patient_interval(
    patient_gene: Float[Array, "P G"], replicates: Float[Array, "R"] | None = None, *, n: int = REPLICATES, seed: int = 0
) -> Interval:
    """Choose and compute the interval of a mean r by the number of patients.

    Args:
        patient_gene: r of each patient and gene, as it enters the mean; NaN where a patient's fold does not hold the gene
            or its measured values were constant.
        replicates: The mean r recomputed on resampled spatial blocks, used below 6 patients.
        n: Number of patient resamples, from 10 patients on.
        seed: Seed of the patient resamples.

    Returns:
        A patient bootstrap from 10 patients, a t-interval from 6, else the block bootstrap, labelled "these sections only".
    """
    patients = len(patient_gene)
    defined = ~np.isnan(patient_gene)
    filled = np.where(defined, patient_gene, 0.0)
    center = float(_mean_defined(filled.sum(axis=0), defined.sum(axis=0))[0])
    if patients < T_FROM:
        drawn = np.full(1, np.nan) if replicates is None else replicates
        return percentile_interval(drawn, THESE_SECTIONS, center)
    if patients < BOOTSTRAP_FROM:
        return t_interval(filled.sum(axis=1) / np.maximum(defined.sum(axis=1), 1), center)
    weights = np.random.default_rng(seed).multinomial(patients, np.full(patients, 1 / patients), size=n).astype(np.float64)
    return percentile_interval(_mean_defined(weights @ filled, weights @ defined), BOOTSTRAP)


def _mean_defined(sums: Float[Array, "... G"], counts: Array) -> Float[Array, "R"]:
    """Mean over genes of sum / count, over the genes with any count: (R, G) or (G,) to (R,)."""
    sums, counts = np.atleast_2d(sums), np.atleast_2d(counts)
    present = counts > 0
    means = np.where(present, sums, 0) / np.where(present, counts, 1)
    return np.asarray(means.sum(axis=1) / np.maximum(present.sum(axis=1), 1))
