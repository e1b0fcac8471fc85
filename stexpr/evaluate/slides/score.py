"""The scores of one fold of a slide study, as they stand in its record and on Weights & Biases."""

import numpy as np

from stexpr.config.slides import SlideProtocol
from stexpr.errors import DataError
from stexpr.evaluate.run_record import Value
from stexpr.evaluate.slides.held_out import FoldScores
from stexpr.evaluate.slides.held_targets import tested_targets
from stexpr.evaluate.slides.measures import HORIZON_SCORES, MEASURES, score_target
from stexpr.evaluate.slides.results import SlideResults, TargetKind

__all__ = ["score_fold"]

FOLD = "this fold"
NO_LABEL = "no test patient of this fold has a label"


def score_fold(results: SlideResults, protocol: SlideProtocol) -> tuple[str, dict[str, Value]]:
    """Score the test patients of one fold.

    Args:
        results: Predictions and labels of the fold.
        protocol: Its first target decides which score a status line shows.

    Returns:
        Name of that score; and all scores, by `measure/target`, such as `auroc/TP53`, and by `measure` alone their mean over
        the targets whose labels define it here. An undefined score is None, and its `interval` says why.

    Raises:
        DataError: No target, a labeled test patient without a prediction, or a label that is no number where one is needed.
    """
    if not results.targets:
        raise DataError("the results hold no target; train on a target at least")
    tested, values = tested_targets({FOLD: results}), dict[str, Value]()
    by_measure: dict[str, list[Value]] = {}
    for name, info in results.targets.items():
        target = tested[name]
        names = [measure.name for measure in MEASURES[info.kind]] + (list(HORIZON_SCORES) if info.kind == "survival" else [])
        scored = {} if target is None else score_target(target)
        for measure in names:
            value = _value(scored[measure]) if scored else Value(value=None, interval=f"undefined: {NO_LABEL}")
            values[f"{measure}/{name}"] = value
            by_measure.setdefault(measure, []).append(value)
    for measure, found in by_measure.items():
        values[measure] = _mean(found)
    return MEASURES[_first_kind(results, protocol)][0].name, values


def _first_kind(results: SlideResults, protocol: SlideProtocol) -> TargetKind:
    kinds = [info.kind for info in results.targets.values()]
    return protocol.targets[0].kind if protocol.targets[0].kind in kinds else kinds[0]


def _value(score: FoldScores) -> Value:
    if np.isnan(score.mean):
        return Value(value=None, interval=f"undefined: {'; '.join(score.undefined.values())}")
    return Value(value=score.mean)


def _mean(values: list[Value]) -> Value:
    known = [value.value for value in values if value.value is not None]
    if not known:
        return Value(value=None, interval="undefined for every target")
    left_out = len(values) - len(known)
    return Value(
        value=float(np.mean(known)), interval=f"mean of {len(known)} targets, {left_out} undefined" if left_out else None
    )
