"""Spots that are in a cohort twice: the same counts, or counts so alike that they are of one spot."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32, UInt64
from scipy.special import gammaln

from stexpr.data.store import PreparedCohort
from stexpr.evaluate.audit.findings import Overlap
from stexpr.panel import ExpressionTransform
from stexpr.types import Progress, silent

__all__ = ["MIN_GENES", "alike_expression", "identical_counts", "repeated_barcodes", "spot_keys"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

SURPRISE = 40.0
"""Nats a row of counts must carry before two equal ones cannot be chance: e^-40 times the pairs of 30,000 spots is 2e-9."""
ALIKE = 0.9
"""Correlation of expression from which two spots may be one. A tenth of the reads lost leaves about 0.95; the most alike
spots of different sections of MOB and HER2ST reach 0.63 and 0.76."""
DISTINCT = 0.5
"""The best partner must halve the distance 1 - r of the second best: in deep data all spots of one cell type are alike, but
a copy is alike to one spot only."""
MIN_GENES = 50
"""With fewer, spots of one kind are too alike to tell a copy."""
GENES = 512


def repeated_barcodes(cohort: PreparedCohort, sections: Iterable[str]) -> dict[str, list[str]]:
    """Return the barcodes that a section holds more than once, by section, only where there are some."""
    repeated = {}
    for section in sections:
        index = cohort.spots(section).index
        if not index.is_unique:
            repeated[section] = sorted(set(index[index.duplicated()]))
    return repeated


def spot_keys(counts: sp.csr_matrix) -> UInt64[Array, "S"]:
    """Hash the counts of each spot, whatever its barcode and the order in which its genes are stored.

    A sum of counts times random odd 64-bit numbers: two unlike spots of a million collide with a chance of 3e-8.

    Example:
        >>> keys = spot_keys(sp.csr_matrix([[1, 0, 2], [0, 0, 0], [1, 0, 2]]))
        >>> bool(keys[0] == keys[2] != keys[1])
        True
    """
    rng = np.random.default_rng(0)
    weights = rng.integers(0, 2**63, size=counts.shape[1], dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    terms = counts.data.astype(np.uint64) * weights[counts.indices]
    sums = np.concatenate([np.zeros(1, dtype=np.uint64), np.cumsum(terms, dtype=np.uint64)])
    return np.asarray(sums[counts.indptr[1:]] - sums[counts.indptr[:-1]])  # both wrap at 2^64, and so does the difference


def identical_counts(cohort: PreparedCohort, sections: Sequence[str]) -> list[Overlap]:
    """Find spots of these sections with equal counts, in two sections or twice in one.

    Spots with so few counts that two of them agree by chance are passed over.

    Args:
        cohort: The prepared cohort.
        sections: Where to look.

    Returns:
        One entry for each pair of sections that share a spot, in the order of `sections`.
    """
    keys = np.concatenate([spot_keys(cohort.counts(section)) for section in sections])
    owner = np.repeat(np.arange(len(sections)), [cohort.counts(section).shape[0] for section in sections])
    starts = np.searchsorted(owner, np.arange(len(sections)))
    order = np.argsort(keys, kind="stable")
    ends = np.flatnonzero(np.r_[keys[order][1:] != keys[order][:-1], True]) + 1
    groups = [order[a:b] for a, b in zip(np.r_[0, ends[:-1]], ends, strict=True) if b - a > 1]
    groups.sort(key=lambda group: int(group[0]))
    if not groups:
        return []
    frequency = _frequencies(cohort, sections)
    shared: Counter[tuple[int, int]] = Counter()
    same: Counter[tuple[int, int]] = Counter()
    example: dict[tuple[int, int], tuple[str, str]] = {}
    names = [cohort.spots(section).index.astype(str).to_numpy() for section in sections]
    for group in groups:
        first = int(group[0])
        row = cohort.counts(sections[owner[first]])[first - starts[owner[first]]]
        if _surprise(row, frequency) < SURPRISE:
            continue
        inside: dict[int, list[str]] = {}
        for spot in group:
            inside.setdefault(int(owner[spot]), []).append(str(names[owner[spot]][spot - starts[owner[spot]]]))
        for a, own in inside.items():
            if len(own) > 1:
                shared[a, a] += len(own) - 1
                example.setdefault((a, a), (own[0], own[1]))
        for a, b in itertools.combinations(sorted(inside), 2):
            both = sorted(set(inside[a]) & set(inside[b]))
            shared[a, b] += min(len(inside[a]), len(inside[b]))
            same[a, b] += len(both)
            example.setdefault((a, b), (both[0], both[0]) if both else (inside[a][0], inside[b][0]))
    return [Overlap(sections[a], sections[b], shared[a, b], same[a, b], example[a, b]) for a, b in sorted(shared)]


def alike_expression(cohort: PreparedCohort, sections: Sequence[str], *, progress: Progress = silent) -> list[Overlap]:
    """Find spots of two sections whose expression is so alike that they are one spot, measured or processed twice.

    Expression of the 512 genes with the highest counts is standardized within each section, which removes what separates
    patients and batches, and correlated spot by spot. Spots of one cell type are alike too, all of them; a copy has one
    partner far closer than the next.

    Args:
        cohort: The prepared cohort.
        sections: Where to look.
        progress: Shows the sections done.

    Returns:
        One entry for each pair of sections with such spots, in the order of `sections`; none with fewer than 50 genes.
    """
    if cohort.manifest.n_genes < MIN_GENES:
        return []
    top = np.argsort(-_frequencies(cohort, sections), kind="stable")[:GENES]
    found: list[Overlap] = []
    done: dict[str, Float32[Array, "S G"]] = {}
    for second in progress(sections, "comparing expression", len(sections)):
        own = _standardized(cohort, second, top)
        for first, other in done.items():
            pairs = _partners(other, own)
            if pairs:
                barcodes = [cohort.spots(section).index.astype(str) for section in (first, second)]
                named = [(str(barcodes[0][i]), str(barcodes[1][j])) for i, j in pairs]
                found.append(Overlap(first, second, len(named), sum(a == b for a, b in named), named[0]))
        done[second] = own
    place: Mapping[str, int] = {section: i for i, section in enumerate(sections)}
    return sorted(found, key=lambda overlap: (place[overlap.first], place[overlap.second]))


def _partners(first: Float32[Array, "S G"], second: Float32[Array, "N G"]) -> list[tuple[int, int]]:
    """Return spots of two sections that are each other's only near match."""
    r = first @ second.T
    best = r.argmax(axis=1)
    mutual = (r[np.arange(len(r)), best] >= ALIKE) & (r.argmax(axis=0)[best] == np.arange(len(r)))
    pairs = []
    for i in np.flatnonzero(mutual):
        j = int(best[i])
        value = r[i, j]
        rivals = max(np.delete(r[i], j).max(initial=-1.0), np.delete(r[:, j], i).max(initial=-1.0))
        if 1 - value <= DISTINCT * (1 - rivals):
            pairs.append((int(i), j))
    return pairs


def _standardized(cohort: PreparedCohort, section: str, genes: Array) -> Float32[Array, "S G"]:
    """Return rows of length 1 whose products are correlations; spots with no variation are all zero."""
    counts = np.asarray(cohort.counts(section)[:, genes].toarray(), dtype=np.float64)
    expression: Float[Array, "S G"] = ExpressionTransform()(counts, cohort.spots(section)["library"].to_numpy())
    expression -= expression.mean(axis=0)
    expression /= np.maximum(expression.std(axis=0), 1e-6)
    expression -= expression.mean(axis=1, keepdims=True)
    length = np.maximum(np.linalg.norm(expression, axis=1, keepdims=True), 1e-6)
    return np.asarray(expression / length, dtype=np.float32)


def _frequencies(cohort: PreparedCohort, sections: Sequence[str]) -> Float[Array, "G"]:
    total = np.zeros(cohort.manifest.n_genes)
    for section in sections:
        total += np.asarray(cohort.counts(section).sum(axis=0), dtype=np.float64).ravel()
    return np.asarray(total / max(total.sum(), 1))


def _surprise(row: sp.csr_matrix, frequency: Float[Array, "G"]) -> float:
    """Return -log of the chance of a spot's counts, were its reads drawn at the cohort's gene frequencies."""
    counts, expected = row.data.astype(np.float64), row.data.sum(dtype=np.float64) * frequency[row.indices]
    counts, expected = counts[counts > 0], expected[counts > 0]
    return float(row.data.sum(dtype=np.float64) + gammaln(counts + 1).sum() - (counts * np.log(expected)).sum())
