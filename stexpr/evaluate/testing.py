"""Tests whose unit is the patient: is a gene predicted better than chance, does one model beat another?

Spots of a section and sections of a patient resemble each other and count for no observations of their own. Where so few
patients cannot reach the level whatever the data, a test says "not testable" and how many it needs. NaN is no hypothesis.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int

from stexpr.errors import MetricError, nearest

__all__ = [
    "GeneTest",
    "PairedTest",
    "PatientsNeeded",
    "benjamini_hochberg",
    "binomial_p",
    "combine_p",
    "compare_models",
    "gene_test",
    "holm",
    "holm_adjusted",
    "patients_needed",
    "sign_flip_test",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FAMILY_ALPHA, ALPHA = 0.1, 0.05  # the first is the family-wise error rate of ST-Net's count (He et al. 2020)
EXACT_UP_TO, FLIPS, MAX_PATIENTS, CAUTION = 30, 99_999, 200, 0.8
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


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same patients: mean difference, two-sided p, patients, patients a verdict needs, verdict."""

    difference: float
    p: float
    n_patients: int
    needed: int
    verdict: str


@dataclass(frozen=True)
class PatientsNeeded:
    """Patients needed at the observed SD and at its upper 80 % bound, None above 200, and the `curve` of power up to there."""

    needed: int | None
    cautious: int | None
    curve: pd.DataFrame

    def __str__(self) -> str:
        low, high = (f"> {MAX_PATIENTS}" if n is None else str(n) for n in (self.needed, self.cautious))
        return low if low == high else f"{low} (cautious: {high})"


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
    needed = max(1, _flips_for(alpha / tested))
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


def sign_flip_test(differences: Float[Array, "P"], *, alpha: float = ALPHA, a: str = "A", b: str = "B") -> PairedTest:
    """Test whether patients' panel-mean r of model `a` minus that of `b` is as often positive as negative (two-sided).

    All 2^n flips of signs count up to 30 patients; above, 99,999 drawn by a fixed seed. Folds share training patients, so
    differences are not strictly independent: it speaks of these models on new patients. Not testable if 2 / 2^n > `alpha`.

    Raises:
        MetricError: No patient, a difference that is not finite, or an impossible alpha.

    Example:
        >>> sign_flip_test(np.array([0.02, 0.05]), a="resnet50", b="color ridge").verdict
        'not testable: n = 2, needs ≥ 6'
    """
    mean, p, needed = _mean(differences), _sign_flip_p(differences), _flips_for(alpha / 2)
    return PairedTest(mean, p, len(differences), needed, _verdict(a, b, mean, p, len(differences), needed, alpha))


def patients_needed(differences: Float[Array, "P"], *, power: float = 0.8, alpha: float = ALPHA) -> PatientsNeeded | None:
    """Estimate how many patients the sign-flip test needs to show that the first model is better.

    Optimistic: it takes the observed difference for the true one, and a leader is partly lucky; None if it is not above 0,
    or for one patient. The SD of few patients is a guess (its upper bound for 2 is 4 times as large), hence `cautious`
    (Browne 1995). Power is Student's at the level the flips attain: within about a patient of simulating normal differences.

    Raises:
        MetricError: No patient, a difference that is not finite, or an impossible alpha.

    Example:
        >>> print(patients_needed(np.array([0.02, 0.05, 0.01, 0.03, 0.04, -0.01])))
        10 (cautious: 17)
    """
    from scipy.stats import chi2

    mean, freedom = _mean(differences), len(differences) - 1
    if mean <= 0 or freedom == 0:
        return None
    # Above 5 SD every patient agrees; the bound keeps identical differences (SD 0) finite.
    effect = mean / max(float(differences.std(ddof=1)), mean / 5)
    n = np.arange(2, MAX_PATIENTS + 1)
    bold, wary = (_power(e, n, alpha) for e in (effect, effect * math.sqrt(chi2.ppf(1 - CAUTION, freedom) / freedom)))
    needed, cautious = (int(k[0]) if len(k) else None for k in (n[bold >= power], n[wary >= power]))
    return PatientsNeeded(needed, cautious, pd.DataFrame({"n_patients": n, "power": bold, "power_cautious": wary}))


def compare_models(
    patient_values: pd.DataFrame, *, reference: str | None = None, top: int | None = None, alpha: float = ALPHA
) -> pd.DataFrame:
    """Compare models (rows) over patients (columns) of panel-mean r: all with `reference`, the best `top` with each other.

    `p_holm`, `verdict` and `patients_needed` allow for all pairs shown; nothing allows for leaders picked from a longer list.
    A patient undefined (NaN) for both models is left out of a pair and of `n_patients`; undefined for one of them, the pair
    is undefined, since leaving that patient out would reward the model that failed on it.

    Returns:
        By pair `a`, `b`, `difference`, `p`, `p_holm`, `n_patients`, `verdict`, `patients_needed` (words).

    Raises:
        MetricError: Nothing to compare, an unknown reference, a model twice, or an infinite value.
    """
    values = patient_values.astype(np.float64)
    pairs, r = _pairs(values, reference, top), dict(zip(values.index, values.to_numpy(), strict=True))
    differences = [(r[a] - r[b])[~np.isnan(r[a] - r[b])] for a, b in pairs]
    alone = [", ".join(map(str, values.columns[np.isnan(r[a]) != np.isnan(r[b])])) for a, b in pairs]
    p = np.array([np.nan if one or not len(d) else _sign_flip_p(d) for d, one in zip(differences, alone, strict=True)])
    share, rows = alpha / max(int((~np.isnan(p)).sum()), 1), []
    for (a, b), d, one, raw, adjusted in zip(pairs, differences, alone, p, holm_adjusted(p), strict=True):
        mean, more, verdict = np.nan, None, f"undefined: no r of one model for {one or 'any patient'}"
        if not np.isnan(raw):
            mean, more = _mean(d), patients_needed(d, alpha=share)
            verdict = _verdict(a, b, mean, adjusted, len(d), _flips_for(share / 2), alpha)
        rows.append((a, b, mean, raw, adjusted, len(d), verdict, "–" if more is None else str(more)))
    return pd.DataFrame(rows, columns=["a", "b", "difference", "p", "p_holm", "n_patients", "verdict", "patients_needed"])


def _pairs(values: pd.DataFrame, reference: str | None, top: int | None) -> list[tuple[str, str]]:
    if values.index.has_duplicates or len(values) < 2 or np.isinf(values.to_numpy()).any():
        raise MetricError(f"{len(values)} models: comparing needs two or more, each named once, with no infinite value")
    if (top is None and reference is None) or (top is not None and top < 2):
        raise MetricError(f"nothing to compare: give a reference model, or top ≥ 2 (top is {top})")
    if reference is not None and reference not in values.index:
        raise MetricError(f"no model {reference!r} to compare with; {nearest(reference, map(str, values.index))}")
    pairs = [] if reference is None else [(model, reference) for model in values.index if model != reference]
    best = values.mean(axis=1).sort_index().sort_values(ascending=False, kind="stable").index[: top or 0]
    return pairs + [pair for pair in combinations(best, 2) if reference not in pair]


def _sign_flip_p(differences: Float[Array, "P"]) -> float:
    # Only magnitudes and the size of the sum matter; sorted, so that neither order nor direction changes a drawn p.
    sizes = np.sort(np.abs(differences.astype(np.float64)))
    extreme = abs(math.fsum(differences)) - 1e-12 * float(sizes.sum())  # equal sums differ in their last bits
    if len(sizes) > EXACT_UP_TO:
        positive = np.random.default_rng(0).integers(0, 2, (FLIPS, len(sizes)), dtype=np.int8)
        return float(1 + np.sum(np.abs(2 * (positive @ sizes) - sizes.sum()) >= extreme)) / (1 + FLIPS)
    # Sums over two halves of the patients meet in the middle: 2^(n/2) work for an exact count of 2^n flips.
    half, other = (reduce(lambda sums, d: np.r_[sums + d, sums - d], part, np.zeros(1)) for part in (sizes[::2], sizes[1::2]))
    as_large = half.size * other.size - int(np.searchsorted(np.sort(other), extreme - half).sum())
    return float(min(1.0, 2 * as_large / 2 ** len(sizes)))


def _power(effect: float, n: Int[Array, "K"], alpha: float) -> Float64[Array, "K"]:  # to say "A beats B"; effect in SDs
    from scipy.special import bdtr, nctdtr, ndtr, stdtrit

    flips = np.maximum(np.floor(alpha * 2.0 ** (n - 1) + 1e-9), 1)  # allowed on one side, the observed one among them
    # The noncentral t has no value far beyond 30, where power is 1.
    student = 1 - nctdtr(n - 1, np.minimum(effect * np.sqrt(n), 30.0), -stdtrit(n - 1, flips / 2.0**n))
    # k negative patients alone make 2^k flips at least as extreme: power is at most the chance of few enough.
    few = bdtr(np.floor(np.log2(flips)), n, ndtr(-effect))
    return np.where(n < _flips_for(alpha / 2), 0.0, np.minimum(student, few))


def _verdict(a: str, b: str, difference: float, p: float, n: int, needed: int, alpha: float) -> str:
    if p > alpha:
        return NOT_TESTABLE.format(n, needed) if n < needed else "no difference shown"
    return f"{a} beats {b}" if difference > 0 else f"{b} beats {a}"


def _flips_for(p: float) -> int:
    if not 0 < p < 1:
        raise MetricError(f"the level of a test is {p}; it must lie between 0 and 1")
    return math.ceil(-math.log2(p) - 1e-9)


def _known(p: Float[Array, "..."]) -> Bool[Array, "..."]:
    if ((p < 0) | (p > 1)).any():
        raise MetricError(f"p-values lie in [0, 1]; these reach from {np.nanmin(p)} to {np.nanmax(p)}")
    return ~np.isnan(p)


def _mean(differences: Float[Array, "P"]) -> float:
    if not len(differences) or not np.isfinite(differences).all():
        raise MetricError("a paired test needs a patient or more and a finite difference for each")
    return math.fsum(differences) / len(differences)
