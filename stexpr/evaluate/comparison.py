"""Does one model beat another? One difference per patient, and how many patients would be enough to tell.

Where so few patients cannot reach the level whatever the data, a comparison says "not testable" and how many it needs.
"""

import math
from dataclasses import dataclass
from functools import reduce
from itertools import combinations
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int

from stexpr.errors import MetricError, nearest
from stexpr.evaluate.testing import ALPHA, NOT_TESTABLE, flips_for, holm_adjusted

__all__ = ["PairedTest", "PatientsNeeded", "compare_models", "paired_verdict", "patients_needed", "sign_flip_test"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

EXACT_UP_TO: Final = 30
FLIPS: Final = 99_999
MAX_PATIENTS: Final = 200
CAUTION: Final = 0.8
"""Level of the upper bound of the SD in `cautious`."""


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
    mean, p, needed = _mean(differences), _sign_flip_p(differences), flips_for(alpha / 2)
    return PairedTest(mean, p, len(differences), needed, paired_verdict(a, b, mean, p, len(differences), needed, alpha))


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
            verdict = paired_verdict(a, b, mean, adjusted, len(d), flips_for(share / 2), alpha)
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
    return np.where(n < flips_for(alpha / 2), 0.0, np.minimum(student, few))


def paired_verdict(a: str, b: str, difference: float, p: float, n: int, needed: int, alpha: float) -> str:
    """Say in words what a paired test of `n` patients shows, where at least `needed` can reach `alpha`."""
    if p > alpha:
        return NOT_TESTABLE.format(n, needed) if n < needed else "no difference shown"
    return f"{a} beats {b}" if difference > 0 else f"{b} beats {a}"


def _mean(differences: Float[Array, "P"]) -> float:
    if not len(differences) or not np.isfinite(differences).all():
        raise MetricError("a paired test needs a patient or more and a finite difference for each")
    return math.fsum(differences) / len(differences)
