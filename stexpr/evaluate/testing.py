"""Tests whose unit is the patient: is a gene predicted better than chance?

Spots of a section and sections of a patient resemble each other and count for no observations of their own. Where so few
patients cannot reach the level whatever the data, a test says "not testable" and how many it needs. NaN is no hypothesis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from stexpr.errors import MetricError

__all__ = [
    "GeneTest",
    "benjamini_hochberg",
    "binomial_p",
    "combine_p",
    "flips_for",
    "gene_test",
    "holm",
    "holm_adjusted",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FAMILY_ALPHA, ALPHA = 0.1, 0.05  # the first is the family-wise error rate of ST-Net's count (He et al. 2020)
P_RANGE: Final = (1e-15, 1 - 1e-4)  # a permutation p of 1, as z, would outweigh all other patients
NOT_TESTABLE: Final = "not testable: n = {}, needs ≥ {}"


@dataclass(frozen=True)
class GeneTest:
    """How many genes are predicted better than chance over patients (ST-Net's count).

    `count` is None where the test cannot reach its level with any data: too few patients, or no defined correlation.
    """

    count: int | None
    n_patients: int
    needed: int

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        return NOT_TESTABLE.format(self.n_patients, self.needed) if self.n_patients < self.needed else "–"


def binomial_p(positive: Int[Array, "G"], n: Int[Array, "G"]) -> Float64[Array, "G"]:
    """Give the chance of at least `positive` of `n` patients with r > 0, each with probability .5; NaN where n is 0.

    Raises:
        MetricError: A count below 0, or more positive patients than patients.
    """
    from scipy.stats import binom

    if positive.shape != n.shape or (positive < 0).any() or (positive > n).any():
        raise MetricError("every gene needs 0 ≤ positive patients (r > 0) ≤ patients (r defined)")
    return np.where(n > 0, binom.sf(positive - 1, np.maximum(n, 1), 0.5), np.nan)


def gene_test(positive: Int[Array, "G"], n: Int[Array, "G"], alpha: float = FAMILY_ALPHA) -> GeneTest:
    """Count genes by `binomial_p` and Holm's rule over the genes that any patient has (He et al. 2020)."""
    p = binomial_p(positive, n)
    most, tested = int(n.max(initial=0)), max(int((n > 0).sum()), 1)
    needed = max(1, flips_for(alpha / tested))
    return GeneTest(None if most < needed else int(holm(p, alpha).sum()), most, needed)


def holm_adjusted(p: Float[Array, "G"]) -> Float64[Array, "G"]:
    """Adjust p-values by Holm's step-down rule (1979), which bounds the chance of any false rejection; NaN stays NaN.

    Raises:
        MetricError: A p-value outside [0, 1].
    """
    known = _known(p)
    order = np.flatnonzero(known)[np.argsort(p[known], kind="stable")]
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)), 1.0)
    return adjusted


def holm(p: Float[Array, "G"], alpha: float = FAMILY_ALPHA) -> Bool[Array, "G"]:
    """Reject hypotheses by Holm's rule at the family-wise error rate `alpha`; NaN is never rejected."""
    return holm_adjusted(p) <= alpha


def benjamini_hochberg(p: Float[Array, "G"], alpha: float = ALPHA) -> tuple[Float64[Array, "G"], Bool[Array, "G"]]:
    """Adjust p-values for the false discovery rate, and tell which are at most `alpha`; NaN stays NaN and is not called.

    Valid for independent and for positively dependent genes (Benjamini and Hochberg 1995).

    Raises:
        MetricError: A p-value outside [0, 1].
    """
    from scipy.stats import false_discovery_control

    known = _known(p)
    adjusted = np.full(len(p), np.nan)
    adjusted[known] = false_discovery_control(p[known])
    return adjusted, adjusted <= alpha


def combine_p(p: Float[Array, "N G"], patients: Sequence[str] | None = None) -> Float64[Array, "G"]:
    """Combine one-sided p-values of sections into one per gene: mean z within a patient, Stouffer's sum over patients.

    Sections of a patient are not independent. The mean of their z has variance 1 if they repeat each other, else less, so
    taking 1 overstates nothing while z are jointly normal; rules for any dependence left no power over 8 patients. Unlike
    under Fisher's rule, a patient with p near 1 weighs against the gene.

    Args:
        p: One row per section; NaN where the gene has no test there. A gene with none anywhere stays NaN.
        patients: Patient of each row; without it every row is a patient of its own.

    Raises:
        MetricError: A p-value that is 0 or outside [0, 1], or unlike numbers of rows and patients.
    """
    from scipy.special import ndtr, ndtri

    known = _known(p)
    if (p == 0).any():
        raise MetricError("a p-value is 0; a permutation test gives (1 + permutations as extreme) / (1 + permutations)")
    patient = np.asarray(range(len(p)) if patients is None else patients)
    if len(patient) != len(p):
        raise MetricError(f"{len(p)} rows of p-values but {len(patient)} patients: give one patient per row")
    member = (np.unique(patient)[:, None] == patient).astype(np.float64)  # (P, N)
    sections = member @ known
    z = member @ np.where(known, -ndtri(np.clip(p, *P_RANGE)), 0.0) / np.maximum(sections, 1)
    n = (sections > 0).sum(axis=0)
    combined = np.maximum(ndtr(-z.sum(axis=0) / np.sqrt(np.maximum(n, 1))), np.finfo(np.float64).tiny)
    return np.where(n > 0, combined, np.nan)


def flips_for(p: float) -> int:
    """Return how many fair coins have to fall alike to be as rare as p.

    Raises:
        MetricError: p is no chance between 0 and 1.

    Example:
        >>> flips_for(0.05 / 2)
        6
    """
    if not 0 < p < 1:
        raise MetricError(f"the level of a test is {p}; it must lie between 0 and 1")
    return math.ceil(-math.log2(p) - 1e-9)


def _known(p: Float[Array, "..."]) -> Bool[Array, "..."]:
    if ((p < 0) | (p > 1)).any():
        raise MetricError(f"p-values lie in [0, 1]; these reach from {np.nanmin(p)} to {np.nanmax(p)}")
    return ~np.isnan(p)
