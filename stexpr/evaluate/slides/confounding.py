"""Does a head see the biology, or the site, the stain or the subtype that goes with it?"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.held_out import HeldOut, check_arrays
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.resampling import PERMUTATIONS, TIE

__all__ = ["StratifiedAuroc", "confounder_stratified_auroc"]


@dataclass(frozen=True)
class StratifiedAuroc:
    """AUROC among patients of one stratum, beside what the same number of patients in random strata would have.

    Attributes:
        plain: Over all pairs of a positive and a negative patient of one fold.
        stratified: Over those pairs that also share the stratum. What the confounder alone explains is gone.
        null_mean: Mean of `stratified` with strata shuffled within folds: what smaller groups alone cost.
        p: Chance that shuffled strata take away at least as much; small where the confounder carries the prediction.
        n_pairs: Pairs in `stratified`.
        share: Of all pairs within folds.
        without_pair: Patients by stratum who stand in no such pair (their stratum holds one label only in their fold).
    """

    plain: float
    stratified: float
    null_mean: float
    p: float
    n_pairs: int
    share: float
    without_pair: dict[str, int]


def confounder_stratified_auroc(
    predicted: Float[Array, "P"],
    positive: Bool[Array, "P"],
    strata: Sequence[str],
    held_out: HeldOut,
    *,
    n: int = PERMUTATIONS,
    seed: int = 0,
) -> StratifiedAuroc:
    """Compare only patients of one fold and stratum, each pair counted once.

    Args:
        predicted: Score of being positive, on held-out patients.
        positive: The label.
        strata: The suspected confounder of each patient, such as the site.
        held_out: Patients and folds of the rows.
        n: Number of shuffles.
        seed: Recorded with the scores.

    Raises:
        MetricError: No fold and stratum has both labels: label and confounder cannot be told apart at all.
        DataError: Unlike lengths, or a prediction that is not finite.
    """
    check_arrays(held_out, predicted, positive)
    if len(strata) != len(held_out):
        raise DataError(f"strata of {len(strata)} patients for {len(held_out)}; give one per patient")
    names, code = np.unique(np.asarray(strata, dtype=str), return_inverse=True)
    pairs = [_pairs(predicted, positive, rows) for rows in held_out.rows.values()]
    observed, n_pairs = _auroc(pairs, code)
    if not n_pairs:
        raise MetricError(
            f"no fold and stratum ({len(names)} strata) holds both labels, so label and confounder cannot be told apart; use "
            "coarser strata or fewer folds"
        )
    rng, null, shuffled = np.random.default_rng(seed), np.empty(n), code.copy()
    for k in range(n):
        for rows in held_out.rows.values():
            shuffled[rows] = code[rng.permutation(rows)]
        null[k] = _auroc(pairs, shuffled)[0]
    defined = null[~np.isnan(null)]
    p = (1 + int((defined <= observed + TIE).sum())) / (1 + defined.size)
    plain, every = _auroc(pairs, np.zeros_like(code))
    alone = _without_pair(positive, code, held_out)
    left_out = {
        str(name): int(count) for name, count in zip(names, np.bincount(code[alone], minlength=len(names)), strict=True)
    }
    mean = float(defined.mean()) if defined.size else np.nan
    return StratifiedAuroc(plain, observed, mean, p, n_pairs, n_pairs / every, {k: v for k, v in left_out.items() if v})


def _pairs(
    predicted: Float[Array, "P"], positive: Bool[Array, "P"], rows: Int[Array, "N"]
) -> tuple[Int[Array, "A 1"], Int[Array, "B"], Float64[Array, "A B"]]:
    """Rows of positive and negative patients of a fold, and for each pair 1 where it is ranked rightly, ½ where tied."""
    first, second = rows[positive[rows]][:, None], rows[~positive[rows]]
    return first, second, (predicted[first] > predicted[second]) + 0.5 * (predicted[first] == predicted[second])


def _auroc(pairs: list[tuple[Array, Array, Array]], code: Int[Array, "P"]) -> tuple[float, int]:
    right, number = 0.0, 0
    for first, second, ranked in pairs:
        same = code[first] == code[second]
        right, number = right + float(ranked[same].sum()), number + int(same.sum())
    return (right / number if number else np.nan), number


def _without_pair(positive: Bool[Array, "P"], code: Int[Array, "P"], held_out: HeldOut) -> Bool[Array, "P"]:
    alone = np.ones(len(code), dtype=bool)
    for rows in held_out.rows.values():
        for stratum in np.unique(code[rows]):
            inside = rows[code[rows] == stratum]
            alone[inside] = len(np.unique(positive[inside])) < 2
    return alone
