"""Is one head, or one kind of instance, better than another on the same patients?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Int

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.comparison import PairedTest, paired_verdict
from stexpr.evaluate.intervals import BOOTSTRAP_FROM, REPLICATES, Interval
from stexpr.evaluate.slides.held_out import FoldScores, HeldOut, Metric, mean_over_folds, score_folds
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.replicates import Picks, replicate_scores
from stexpr.evaluate.slides.resampling import TIE, bootstrap_draws, replicate_interval
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
    strata: Sequence[str] | None = None,
    alpha: float = ALPHA,
    seed: int = 0,
) -> HeadComparison:
    """Swap the two predictions of each patient at random: if the heads are alike, who said what does not matter.

    Heads have unlike scales, so scores of ranks (AUROC, c, Spearman) are swapped as ranks within the fold, which leaves them as
    they are. It speaks of these two trained sets of networks on new patients; training them again is not in it.

    Args:
        metric: As for `score_folds`.
        held_out: Patients and folds of the rows.
        predicted: Predictions of both heads, one value per patient; or, not `ranked`, one row.
        truth: What `metric` takes after the predictions.
        names: Of the heads, for the verdict.
        ranked: False for a metric of the values themselves (Pearson, calibration), whose two heads share a unit.
        greater: Whether a higher score is better; False for errors.
        n: Number of random swaps.
        replicates: Of the bootstrap.
        strata: Draw the bootstrap within these, as for `bootstrap_interval`.
        alpha: Level of the verdict.
        seed: Recorded with the scores.

    Raises:
        MetricError: `ranked` with a metric that ranks do not preserve.
        DataError: Heads of unlike patients, or what `score_folds` refuses.

    Reference:
        Venkatraman and Begg (1996), Biometrika 83:835-848 (ranks swapped between paired ROC curves).
    """
    if predicted[0].shape != predicted[1].shape or (ranked and predicted[0].ndim != 1):
        raise DataError(f"heads of shapes {predicted[0].shape} and {predicted[1].shape}; both need one value for each patient")
    difference, both = _difference(metric), np.stack(predicted, axis=1).astype(np.float64)
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
    swaps = np.random.default_rng(seed).integers(0, 2, (n, len(both)))
    reached = np.abs(_replicate_differences(metric, _swapped(defined, swaps), scale, truth)) >= abs(observed) - TIE
    p, patients = (1 + int(reached.sum())) / (1 + n), sum(map(len, defined.values()))
    better = scores.mean if greater else -scores.mean
    words = paired_verdict(*names, better, p, patients, needed, alpha)
    interval = Interval(np.nan, np.nan, f"none: {len(held_out)} patients, a bootstrap needs {BOOTSTRAP_FROM}")
    if len(held_out) >= BOOTSTRAP_FROM:
        drawn = bootstrap_draws(defined, held_out, strata, replicates, seed)
        picks = {fold: (Picks(rows, rows), Picks(rows + len(both), rows)) for fold, rows in drawn.items()}
        interval = replicate_interval(_replicate_differences(metric, picks, both, truth))
    return HeadComparison(a, b, PairedTest(scores.mean, p, patients, needed, words), interval)


def _swapped(rows: Mapping[str, Int[Array, "N"]], swaps: Int[Array, "R P"]) -> dict[str, tuple[Picks, Picks]]:
    """By fold, where the two heads' predictions are read once they have been swapped: the second head's lie behind."""
    picks = {}
    for fold, inside in rows.items():
        still = np.broadcast_to(inside, (len(swaps), len(inside)))
        other = swaps[:, inside] * swaps.shape[1]
        picks[fold] = (Picks(still + other, still), Picks(still + swaps.shape[1] - other, still))
    return picks


def _replicate_differences(
    metric: Metric, picks: Mapping[str, tuple[Picks, Picks]], both: Float[Array, "P 2 *K"], truth: tuple[Array, ...]
) -> Float64[Array, "R"]:
    behind = np.concatenate([both[:, 0], both[:, 1]])
    a, b = (replicate_scores(metric, {fold: pair[head] for fold, pair in picks.items()}, behind, truth) for head in (0, 1))
    return np.asarray(a - b)


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
