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

__all__ = ["HeadComparison", "PairedTarget", "compare_heads", "compare_over_targets"]

SWAPS: Final = 1999


@dataclass(frozen=True)
class PairedTarget:
    """What two heads predict of one target.

    Attributes:
        metric: As for `score_folds`.
        held_out: Patients and folds of the rows.
        predicted: Of both heads, one value or row per patient.
        truth: What `metric` takes after the predictions.
    """

    metric: Metric
    held_out: HeldOut
    predicted: tuple[Array, Array]
    truth: tuple[Array, ...]


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
        predicted: Predictions of both heads, one value per patient, or one row.
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
    pair = _paired(PairedTarget(metric, held_out, predicted, truth), ranked)
    needed = flips_for(alpha / 2)
    if pair.why:
        test = PairedTest(np.nan, np.nan, len(held_out), needed, f"undefined: {pair.why}")
        return HeadComparison(pair.a, pair.b, test, Interval(np.nan, np.nan, f"none: {pair.why}"))
    swaps = np.random.default_rng(seed).integers(0, 2, (n, len(held_out)))
    p = _share_reached(pair.replicates(pair.swapped(swaps), pair.scale), pair.observed)
    patients = sum(map(len, pair.defined.values()))
    words = paired_verdict(*names, pair.observed if greater else -pair.observed, p, patients, needed, alpha)
    interval = Interval(np.nan, np.nan, f"none: {len(held_out)} patients, a bootstrap needs {BOOTSTRAP_FROM}")
    if len(held_out) >= BOOTSTRAP_FROM:
        drawn = bootstrap_draws(pair.defined, held_out, strata, replicates, seed)
        picks = {fold: (Picks(rows, rows), Picks(rows + len(held_out), rows)) for fold, rows in drawn.items()}
        interval = replicate_interval(pair.replicates(picks, pair.both))
    return HeadComparison(pair.a, pair.b, PairedTest(pair.observed, p, patients, needed, words), interval)


def compare_over_targets(
    targets: Sequence[PairedTarget],
    *,
    names: tuple[str, str] = ("A", "B"),
    ranked: bool = True,
    greater: bool = True,
    n: int = SWAPS,
    alpha: float = ALPHA,
    seed: int = 0,
) -> PairedTest:
    """Compare two heads by the mean of their scores over several targets; a patient's predictions of all targets are swapped.

    Targets of one patient are not independent, so they change hands together.

    Args:
        targets: One or more, of any patients.
        names: Of the heads, for the verdict.
        ranked: As for `compare_heads`.
        greater: Whether a higher score is better.
        n: Number of random swaps.
        alpha: Level of the verdict.
        seed: Recorded with the scores.

    Returns:
        Undefined where any of the targets is.

    Raises:
        MetricError: No target, or what `compare_heads` refuses.
        DataError: What `compare_heads` refuses.
    """
    if not targets:
        raise MetricError("no target to compare heads on; give one or more")
    pairs, needed = [_paired(target, ranked) for target in targets], flips_for(alpha / 2)
    place = {patient: i for i, patient in enumerate(sorted({who for pair in targets for who in pair.held_out.patients}))}
    if why := "; ".join(pair.why for pair in pairs if pair.why):
        return PairedTest(np.nan, np.nan, len(place), needed, f"undefined: {why}")
    swaps = np.random.default_rng(seed).integers(0, 2, (n, len(place)))
    null, observed = np.zeros(n), float(np.mean([pair.observed for pair in pairs]))
    for pair in pairs:
        own = swaps[:, [place[patient] for patient in pair.target.held_out.patients]]
        null += pair.replicates(pair.swapped(own), pair.scale) / len(pairs)
    p = _share_reached(null, observed)
    words = paired_verdict(*names, observed if greater else -observed, p, len(place), needed, alpha)
    return PairedTest(observed, p, len(place), needed, words)


@dataclass(frozen=True)
class _Pair:
    """A target with the scores of both heads; `why` is empty where the difference is defined."""

    target: PairedTarget
    both: Float64[Array, "P 2 *K"]
    scale: Float64[Array, "P 2 *K"]
    defined: Mapping[str, Int[Array, "N"]]
    a: FoldScores
    b: FoldScores
    observed: float
    why: str

    def swapped(self, swaps: Int[Array, "R P"]) -> dict[str, tuple[Picks, Picks]]:
        """By fold, where the heads' predictions are read once they have been swapped: the second head's lie behind."""
        picks = {}
        for fold, inside in self.defined.items():
            still = np.broadcast_to(inside, (len(swaps), len(inside)))
            other = swaps[:, inside] * len(self.both)
            picks[fold] = (Picks(still + other, still), Picks(still + len(self.both) - other, still))
        return picks

    def replicates(self, picks: Mapping[str, tuple[Picks, Picks]], values: Float64[Array, "P 2 *K"]) -> Float64[Array, "R"]:
        """Difference of the heads in each replicate."""
        behind, metric, truth = np.concatenate([values[:, 0], values[:, 1]]), self.target.metric, self.target.truth
        a, b = (replicate_scores(metric, {fold: two[head] for fold, two in picks.items()}, behind, truth) for head in (0, 1))
        return np.asarray(a - b)


def _paired(target: PairedTarget, ranked: bool) -> _Pair:
    first, second = target.predicted
    if first.shape != second.shape or len(first) != len(target.held_out):
        raise DataError(
            f"heads of shapes {first.shape} and {second.shape} for {len(target.held_out)} patients; both need one value for "
            "each patient, or one row"
        )
    difference, both = _difference(target.metric), np.stack(target.predicted, axis=1).astype(np.float64)
    a, b = (score_folds(target.metric, target.held_out, both[:, head], *target.truth) for head in (0, 1))
    scores = score_folds(difference, target.held_out, both, *target.truth)
    scale = _ranks(both, target.held_out) if ranked else both
    if np.isnan(scores.mean):
        why = "; ".join(f"fold {fold}: {reason}" for fold, reason in scores.undefined.items())
        return _Pair(target, both, scale, {}, a, b, np.nan, why)
    defined = {fold: rows for fold, rows in target.held_out.rows.items() if fold not in scores.undefined}
    observed = mean_over_folds(difference, defined, (scale, *target.truth))
    if not abs(observed - scores.mean) <= TIE:
        raise MetricError("this metric changes when predictions are replaced by their ranks; pass ranked=False")
    return _Pair(target, both, scale, defined, a, b, scores.mean, "")


def _share_reached(null: Float64[Array, "R"], observed: float) -> float:
    return (1 + int((np.abs(null) >= abs(observed) - TIE).sum())) / (1 + len(null))


def _difference(metric: Metric) -> Metric:
    if isinstance(metric, Mapping):
        return {fold: _between(of_fold) for fold, of_fold in metric.items()}
    return _between(metric)


def _between(metric: Callable[..., float]) -> Callable[..., float]:
    return lambda both, *truth: metric(both[:, 0], *truth) - metric(both[:, 1], *truth)


def _ranks(both: Float[Array, "P 2 *K"], held_out: HeldOut) -> Float64[Array, "P 2 *K"]:
    from scipy.stats import rankdata

    ranks = np.empty(both.shape)
    for rows in held_out.rows.values():
        ranks[rows] = rankdata(both[rows], axis=0)
    return ranks
