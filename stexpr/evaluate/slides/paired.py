"""Is one head, or one kind of instance, better than another on the same patients?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.comparison import PairedTest, paired_verdict
from stexpr.evaluate.intervals import REPLICATES, Interval
from stexpr.evaluate.slides.held_out import FoldScores, HeldOut, Metric, mean_over_folds, score_folds
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.resampling import TIE, bootstrap_interval
from stexpr.evaluate.testing import ALPHA, flips_for

__all__ = ["HeadComparison", "compare_heads"]

SWAPS: Final = 1999


@dataclass(frozen=True)
class HeadComparison:
    """Two heads on the same patients and folds.

    Attributes:
        a: Scores of the first head.
        b: Scores of the second.
        test: Difference a - b over folds both define, two-sided p, and the verdict in words.
        interval: Of the difference, both heads resampled alike.
    """

    a: FoldScores
    b: FoldScores
    test: PairedTest
    interval: Interval


def compare_heads(
    metric: Metric,
    held_out: HeldOut,
    predicted: tuple[Array, Array],
    *truth: Array,
    names: tuple[str, str] = ("A", "B"),
    ranked: bool = True,
    greater: bool = True,
    n: int = SWAPS,
    replicates: int = REPLICATES,
    alpha: float = ALPHA,
    seed: int = 0,
) -> HeadComparison:
    """Swap the two predictions of each patient at random: if the heads are alike, who said what does not matter.

    Heads have unlike scales, so scores of ranks (AUROC, c, Spearman) are swapped as ranks within the fold, which leaves them as
    they are. It speaks of these two trained sets of networks on new patients; training them again is not in it.

    Args:
        metric: As for `score_folds`.
        held_out: Patients and folds of the rows.
        predicted: Predictions of both heads, one value per patient.
        truth: What `metric` takes after the predictions.
        names: Of the heads, for the verdict.
        ranked: False for a metric of the values themselves (Pearson, calibration), whose two heads share a unit.
        greater: Whether a higher score is better; False for errors.
        n: Number of random swaps.
        replicates: Of the bootstrap.
        alpha: Level of the verdict.
        seed: Recorded with the scores.

    Raises:
        MetricError: `ranked` with a metric that ranks do not preserve.
        DataError: Heads of unlike patients, or what `score_folds` refuses.

    Reference:
        Venkatraman and Begg (1996), Biometrika 83:835-848 (ranks swapped between paired ROC curves).
    """
    if predicted[0].shape != predicted[1].shape or predicted[0].ndim != 1:
        raise DataError(f"heads of shapes {predicted[0].shape} and {predicted[1].shape}; both need one value for each patient")
    difference, both = _difference(metric), np.column_stack(predicted).astype(np.float64)
    a, b = (score_folds(metric, held_out, both[:, head], *truth) for head in (0, 1))
    scores = score_folds(difference, held_out, both, *truth)
    needed = flips_for(alpha / 2)
    if np.isnan(scores.mean):
        why = "; ".join(f"fold {fold}: {reason}" for fold, reason in scores.undefined.items())
        test = PairedTest(np.nan, np.nan, len(held_out), needed, f"undefined: {why}")
        return HeadComparison(a, b, test, Interval(np.nan, np.nan, f"none: {why}"))
    defined = {fold: rows for fold, rows in held_out.rows.items() if fold not in scores.undefined}
    scale = _ranks(both, held_out) if ranked else both
    observed = mean_over_folds(difference, defined, (scale, *truth))
    if not abs(observed - scores.mean) <= TIE:
        raise MetricError("this metric changes when predictions are replaced by their ranks; pass ranked=False")
    rng, reached = np.random.default_rng(seed), 0
    for _ in range(n):
        swap = rng.integers(0, 2, len(both), dtype=bool)[:, None]
        swapped = np.where(swap, scale[:, ::-1], scale)
        reached += abs(mean_over_folds(difference, defined, (swapped, *truth))) >= abs(observed) - TIE
    p, patients = (1 + reached) / (1 + n), sum(map(len, defined.values()))
    better = scores.mean if greater else -scores.mean
    words = paired_verdict(*names, better, p, patients, needed, alpha)
    interval = bootstrap_interval(difference, held_out, both, *truth, n=replicates, seed=seed)
    return HeadComparison(a, b, PairedTest(scores.mean, p, patients, needed, words), interval)


def _difference(metric: Metric) -> Metric:
    if isinstance(metric, Mapping):
        return {fold: _between(of_fold) for fold, of_fold in metric.items()}
    return _between(metric)


def _between(metric: Callable[..., float]) -> Callable[..., float]:
    return lambda both, *truth: metric(both[:, 0], *truth) - metric(both[:, 1], *truth)


def _ranks(both: Float[Array, "P 2"], held_out: HeldOut) -> Float64[Array, "P 2"]:
    from scipy.stats import rankdata

    ranks = np.empty(both.shape)
    for rows in held_out.rows.values():
        ranks[rows] = rankdata(both[rows], axis=0)
    return ranks
