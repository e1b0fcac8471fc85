"""How well expression could be predicted at most, given how few molecules were counted.

A measured expression is a noisy copy of the true one, so even a perfect prediction of the truth correlates with it below 1.
Splitting the counts of each spot in two at random gives two independent measurements of the same truth at half the depth;
how well these agree tells how well the whole measurement agrees with the truth.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float64, Int, Int64, Num

from stexpr.errors import MetricError
from stexpr.evaluate.intervals import REPLICATES, THESE_SECTIONS, block_replicates, percentile_interval
from stexpr.evaluate.metrics import pearson_per_gene

__all__ = ["Ceiling", "noise_ceiling"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

REPEATS = 10
BITS = 64
AT_ONCE = 1 << 16
GENES_AT_ONCE = 64


@dataclass(frozen=True)
class Ceiling:
    """The highest correlation counting noise allows, per gene, in the order of the genes given; NaN where undefined.

    Attributes:
        value: The ceiling, in [0, 1].
        low: Lower end of its 95 % interval, over spatial blocks of this section and over splits.
        high: Upper end.
        depth_blind: The same ceiling after the depth of the spots has been regressed out of both halves.
    """

    value: Float64[Array, "G"]
    low: Float64[Array, "G"]
    high: Float64[Array, "G"]
    depth_blind: Float64[Array, "G"]


def noise_ceiling(
    counts: Num[Array, "S G"] | sp.csr_matrix | sp.csr_array,
    library: Float[Array, "S"],
    transform: Callable[[Any, Any], Any],
    blocks: Int[Array, "S"],
    *,
    repeats: int = REPEATS,
    replicates: int = REPLICATES,
    seed: int = 0,
) -> Ceiling:
    """Bound the correlation of any prediction with the measured expression of one section.

    Each count goes to one of two halves by a fair coin, that of the panel's genes and that of the rest of the library, so
    each half has a library of its own; both are transformed, and correlated over the spots (h, the mean over the splits).
    A whole measurement then has reliability 2h / (1 + h), and the ceiling is its square root. Where h is not above 0 the
    halves share nothing, and the ceiling is 0: the gene cannot be predicted from anything.

    The ceiling bounds the noise of counting only. What both halves share counts as signal, also where no tissue is behind
    it: the depth of a spot, its capture area, ambient RNA. So does the trace of depth that log1p of normalized counts
    keeps, since the formula holds for additive noise only. On simulated counts (300 spots, 5,000 counts each, genes of
    mean 0.2 to 20 with a CV of 0.3 to 1, depth unrelated to them) the mean of `value` over genes is within .01 of the truth
    while the log library has SD 0.3, but above it by .03-.04 at SD 0.6, .05-.11 at 0.8 and .10-.25 at 1.2, most for genes
    that vary least; a single gene is uncertain by about .1, which `low` and `high` cover, the bias they do not.
    `depth_blind` is off by .03 at most at SD 0.8 and .07 at 1.2 there. In tissue it is no bound: depth follows the cells,
    and what a gene shares with depth is regressed out with it. It tells how much of `value` goes beyond depth.

    A spot whose half drew no count at all has the expression of zero counts in that half, as if its library were 1; no
    spot is left out. A gene that is constant in a half of any split has too few counts to be split: NaN.

    Args:
        counts: Raw counts of the panel's genes.
        library: Total counts of each spot over the whole library, the panel included.
        transform: From counts and library to expression, gene by gene, such as `ExpressionTransform`.
        blocks: Spatial block of each spot, from `spatial_blocks`.
        repeats: Number of splits to average over.
        replicates: Number of bootstrap replicates; each redraws blocks of spots and splits, and all are moved so that
            their mean is the point estimate.
        seed: The same seed and data give the same bits; the draw follows the order of the spots and genes.

    Returns:
        The ceiling of each gene with its interval.

    Raises:
        MetricError: Fewer than two spots, counts that are negative or not whole, or a library that is 0, not whole or
            smaller than the spot's panel counts.

    Example:
        >>> from stexpr.panel import ExpressionTransform
        >>> counts = np.random.default_rng(0).poisson(np.linspace([1.0, 50.0], [1.0, 90.0], 400))  # (400 spots, 2 genes)
        >>> ceiling = noise_ceiling(counts, np.full(400, 1000.0), ExpressionTransform(), np.arange(400) // 20, replicates=50)
        >>> ceiling.value.round(1)
        array([0. , 0.8])

    Reference:
        Spearman 1910 and Brown 1910, the reliability of a test from its halves.
    """
    whole = sp.csc_matrix(counts, copy=True)
    whole.sum_duplicates()
    panel = np.bincount(whole.indices, weights=whole.data, minlength=whole.shape[0])
    _check(whole.data, panel, library)
    whole.data, total = whole.data.astype(np.int64), library.astype(np.int64)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(repeats, np.full(repeats, 1 / repeats), size=replicates) / repeats  # (R, repeats)
    depth = np.log(total)[:, None]
    spots, genes = whole.shape
    section = ["section"] * spots
    h, blind, resampled = np.zeros(genes), np.zeros(genes), np.zeros((genes, replicates), dtype=np.float32)
    for share in drawn.T:
        for columns, one, other in _halves(whole, total - panel.astype(np.int64), transform, rng):
            r = pearson_per_gene(one, other)
            h[columns] += r / repeats
            blind[columns] += _without(r, one, other, depth) / repeats
            correlations = block_replicates(one, other, blocks, section, n=replicates, seed=seed)
            resampled[columns] += share.astype(np.float32) * correlations
    bounds = [percentile_interval(row, THESE_SECTIONS, center) for row, center in zip(resampled, h, strict=True)]
    low, high = (np.array([getattr(bound, end) for bound in bounds], dtype=np.float64) for end in ("low", "high"))
    return Ceiling(_ceiling(h), _ceiling(low), _ceiling(high), _ceiling(blind))


def _check(values: Array, panel: Float64[Array, "S"], library: Float[Array, "S"]) -> None:
    if len(library) < 2:
        raise MetricError(f"{len(library)} spots have no spread; a noise ceiling needs at least 2")
    if not (np.isfinite(values).all() and (values >= 0).all() and (values == np.floor(values)).all()):
        raise MetricError("a noise ceiling splits raw counts, but some are negative or not whole; pass counts, not expression")
    wrong = ~((library >= np.maximum(panel, 1)) & np.isfinite(library) & (library == np.floor(library)))
    if wrong.any():
        spot = int(np.argmax(wrong))
        raise MetricError(
            f"the library of {int(wrong.sum())} of {len(library)} spots is 0, not whole or below the panel's counts (first: "
            f"spot {spot}, library {library[spot]:g}, panel {panel[spot]:g}); pass each spot's total over all genes measured"
        )


def _halves(
    whole: sp.csc_matrix, rest: Int64[Array, "S"], transform: Callable[[Any, Any], Any], rng: np.random.Generator
) -> Iterator[tuple[slice, Float[Array, "S G"], Float[Array, "S G"]]]:
    """Split once; yield the expression of both halves, some genes at a time."""
    taken, rest_taken = _thin(whole.data, rng), _thin(rest, rng)
    sides = []
    for data, others in ((taken, rest_taken), (whole.data - taken, rest - rest_taken)):
        half = sp.csc_matrix((data.astype(np.float32), whole.indices, whole.indptr), shape=whole.shape)
        library = others + np.bincount(half.indices, weights=half.data, minlength=len(rest))
        sides.append((half, np.maximum(library, 1).astype(np.float32)))
    for start in range(0, whole.shape[1], GENES_AT_ONCE):
        columns = slice(start, start + GENES_AT_ONCE)
        one, other = (transform(half[:, columns].toarray("C"), library) for half, library in sides)
        yield columns, one, other


def _thin(counts: Int64[Array, "N"], rng: np.random.Generator) -> Int64[Array, "N"]:
    """Toss a fair coin for every single count: Binomial(n, 1/2), exactly, as the number of ones among n random bits."""
    taken = np.empty_like(counts)
    for start in range(0, counts.size, AT_ONCE):
        n = counts[start : start + AT_ONCE]
        bits = rng.integers(0, 1 << BITS, n.size, dtype=np.uint64, endpoint=False)
        part = np.bitwise_count(bits >> (BITS - np.minimum(n, BITS)).astype(np.uint64)).astype(np.int64)
        many = n > BITS
        part[many] = rng.binomial(n[many], 0.5)
        taken[start : start + AT_ONCE] = part
    return taken


def _without(
    r: Float64[Array, "G"], one: Float[Array, "S G"], other: Float[Array, "S G"], depth: Float64[Array, "S 1"]
) -> Float64[Array, "G"]:
    """Turn the correlation r of two halves into their partial correlation given depth, that of the residuals."""
    if np.ptp(depth) == 0:
        return r
    shared = np.broadcast_to(depth, one.shape)
    with_one, with_other = pearson_per_gene(one, shared), pearson_per_gene(other, shared)
    left = (1 - with_one**2) * (1 - with_other**2)
    defined = left > 0
    return np.where(defined, np.clip((r - with_one * with_other) / np.sqrt(np.where(defined, left, 1)), -1, 1), np.nan)


def _ceiling(h: Float64[Array, "G"]) -> Float64[Array, "G"]:
    """Step up from half to whole (Spearman-Brown), and from reliability to correlation with the truth."""
    shared = np.clip(h, 0, 1)
    return np.asarray(np.sqrt(2 * shared / (1 + shared)))
