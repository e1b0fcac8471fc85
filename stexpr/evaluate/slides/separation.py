"""How far an AUROC may be off where it is perfect: no bootstrap can say, since every patient drawn again is ranked as well.

Of positive and negative patients put into pairs, each patient in one, pairs are independent, and each is ranked rightly with a
chance that is the AUROC at most. So k pairs are all ranked rightly with a chance of AUROC to the power k at most, whatever the
predictions' distribution: the limit of Clopper and Pearson for k successes of k. It does not assume normal scores, as those of
Obuchowski and Lieber for this case do, nor that the variance at 1 be extrapolated, as those of Hanley and McNeil or DeLong
would: theirs are 0 there. It is wider than either.

Reference:
    Clopper and Pearson (1934), Biometrika 26:404-413. Obuchowski and Lieber (2002), Academic Radiology 9:526-530 (the problem).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Bool, Int

from stexpr.evaluate.intervals import LEVEL, Interval

__all__ = ["separated_interval"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

EXACT: Final = (
    "95 % exact, of perfectly ranked disjoint pairs within folds (Clopper-Pearson), conditional on the trained models"
)


def separated_interval(
    values: Mapping[str, float], rows: Mapping[str, Int[Array, "N"]], positive: Bool[Array, "P"]
) -> Interval | None:
    """Bound the mean over folds of an AUROC that is 0 or 1 in each, or that of a constant prediction (.5).

    Below, the mean may be off by what the folds at 1 can lack together, above, by what those at 0 can; predictions that are
    constant in a fold have .5 there whoever is drawn.

    Args:
        values: AUROC of each fold that defines it.
        rows: Rows of these folds.
        positive: The label, by row.

    Returns:
        The interval, which holds the true mean with a chance of 95 % at least; None where a fold has another AUROC.
    """
    if not set(values.values()) <= {0.0, 0.5, 1.0}:
        return None
    pairs = {fold: int(min(positive[inside].sum(), (~positive[inside]).sum())) for fold, inside in rows.items()}
    below, above = (_shortfall([pairs[fold] for fold, value in values.items() if value == end]) for end in (1.0, 0.0))
    mean = float(np.mean(list(values.values())))
    return Interval(mean - below / len(values), mean + above / len(values), EXACT)


def _shortfall(pairs: Sequence[int]) -> float:
    """Return by how much the AUROCs of folds can fall short of 1 in sum, though all of these pairs were ranked rightly.

    The product of chance ** pairs over the folds is held at 2.5 %. Their sum is least where the chances are as the pairs
    (Lagrange), but none above 1.
    """
    ascending = np.sort(np.asarray(pairs, dtype=np.float64))
    for n in range(len(ascending), 0, -1):
        k = ascending[:n]
        chance = k * math.exp((math.log((1 - LEVEL) / 2) - float((k * np.log(k)).sum())) / float(k.sum()))
        if chance[-1] <= 1:
            return float((1 - chance).sum())
    return 0.0
