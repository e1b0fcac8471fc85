"""Heads against their color baselines, and the leading heads against each other: paired, the patient as the unit."""

from collections.abc import Sequence
from itertools import combinations, product
from typing import Any, Final

import numpy as np
import pandas as pd

from stexpr.evaluate.comparison import paired_verdict
from stexpr.evaluate.slides.heads import CrossValidation, HeadLine
from stexpr.evaluate.slides.measures import MEASURES, Measure
from stexpr.evaluate.slides.paired import PairedTarget, compare_heads, compare_over_targets
from stexpr.evaluate.slides.resampling import Draws
from stexpr.evaluate.slides.target_table import label_strata
from stexpr.evaluate.testing import ALPHA, flips_for, holm_adjusted
from stexpr.types import Progress, silent

__all__ = ["MEAN_OF", "TOP", "compared_pairs", "head_tests"]

TOP: Final = 3
"""Leading heads that are compared with each other."""
MEAN_OF: Final = "mean of {} targets"
COLUMNS: Final = (
    *("a", "b", "target", "measure", "difference", "low", "high", "interval", "p", "p_holm", "n_patients", "verdict"),
)


def compared_pairs(lines: Sequence[HeadLine]) -> list[tuple[HeadLine, HeadLine]]:
    """Pair every head with its color baseline, then the leading heads, best first, with each other."""
    heads = [line for line in lines if not line.is_baseline]
    held_against = [(line, line.baseline_among(lines)) for line in heads]
    return [(a, b) for a, b in held_against if b is not None] + list(combinations(heads[:TOP], 2))


def head_tests(
    lines: Sequence[HeadLine], targets: pd.DataFrame, shown: Sequence[str], draws: Draws, progress: Progress = silent
) -> pd.DataFrame:
    """Test pairs of heads on targets, and on the mean over the targets of a kind where several were tested.

    Seeds of the two heads are paired by their number where both have the same seeds, else each with each; differences, bounds
    and p-values of all pairs and partitions are averaged.

    Args:
        lines: The heads, best first.
        targets: As `target_table` makes it; targets that were not tested are not compared.
        shown: Targets that are compared one by one.
        draws: How often to swap and to draw.
        progress: Shows the pairs tested.

    Returns:
        By target and pair `a`, `b`, `target`, `measure`, `difference` (a - b), `low`, `high`, `interval` (what it covers, or
        why there is none), `p` (two-sided), `p_holm` (over the pairs on that target), `n_patients`, `verdict`.
    """
    tested = targets[targets["n_folds"] > 0].drop_duplicates("target")
    of_kind = {str(kind): part["target"].tolist() for kind, part in tested.groupby("target_kind", sort=False)}
    asked: list[tuple[str, list[str]]] = []
    for names in of_kind.values():
        asked += [(MEAN_OF.format(len(names)), names)] if len(names) > 1 else []
        asked += [(name, [name]) for name in names if name in shown]
    pairs, rows = compared_pairs(lines), list[dict[str, Any]]()
    for a, b in progress(pairs, "comparing heads", len(pairs)):
        rows += [{"target": title, **_compared(a, b, names, draws)} for title, names in asked]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    order = {title: place for place, (title, _) in enumerate(asked)}
    table = table.sort_values("target", key=lambda column: column.map(order), kind="stable").reset_index(drop=True)
    for title in order:
        own = table["target"] == title
        table.loc[own, "p_holm"] = holm_adjusted(table.loc[own, "p"].to_numpy(dtype=np.float64))
    table["verdict"] = [_verdict(row, len(pairs)) for row in table.to_dict("records")]
    return table


def _compared(a: HeadLine, b: HeadLine, names: Sequence[str], draws: Draws) -> dict[str, Any]:
    measure = MEASURES[a.tested(names[0])[0].info.kind][0]
    found = [_pair(one, other, names, measure, draws) for one, other in _paired_validations(a, b)]
    means = {key: float(np.mean([row[key] for row in found])) for key in ("difference", "low", "high", "p")}
    first = found[0] | {"interval": next((row["interval"] for row in found if np.isnan(row["low"])), found[0]["interval"])}
    return {"a": a.label, "b": b.label, "measure": measure.name, **first, **means}


def _paired_validations(a: HeadLine, b: HeadLine) -> list[tuple[CrossValidation, CrossValidation]]:
    same_seeds = set(a.records) == set(b.records)
    return [
        (one, other)
        for one, other in product(a.validations, b.validations)
        if one.repeat == other.repeat and (one.seed == other.seed or not same_seeds)
    ]


def _pair(a: CrossValidation, b: CrossValidation, names: Sequence[str], measure: Measure, draws: Draws) -> dict[str, Any]:
    both = [(a.targets[name], b.targets[name]) for name in names]
    known = [(one, other) for one, other in both if one is not None and other is not None]
    options = {"ranked": measure.ranked, "greater": measure.greater, "n": draws.swaps, "seed": draws.seed}
    if len(names) > 1:
        paired = [PairedTarget(measure.metric(one), one.held_out, (one.value, other.value), one.truth) for one, other in known]
        test = compare_over_targets(paired, **options)  # type: ignore[arg-type]
        low = high = np.nan
        interval = "none: one draw of patients cannot keep the rare labels of several targets"
    else:
        one, other = known[0]
        compared = compare_heads(
            measure.metric(one),
            one.held_out,
            (one.value, other.value),
            *one.truth,
            replicates=draws.replicates,
            strata=label_strata(one),
            **options,  # type: ignore[arg-type]
        )
        test, low, high, interval = compared.test, compared.interval.low, compared.interval.high, compared.interval.kind
    numbers = {"difference": test.difference, "low": low, "high": high, "p": test.p, "n_patients": test.n_patients}
    return {**numbers, "interval": interval, "verdict": test.verdict}


def _verdict(row: dict[Any, Any], pairs: int) -> str:
    """Judge by p after Holm's rule, and say what an undefined pair lacks."""
    if np.isnan(row["p"]):
        return str(row["verdict"])
    measure = next(one for own in MEASURES.values() for one in own if one.name == row["measure"])
    better = row["difference"] if measure.greater else -row["difference"]
    needed = flips_for(ALPHA / 2 / max(pairs, 1))
    return paired_verdict(row["a"], row["b"], better, row["p_holm"], row["n_patients"], needed, ALPHA)
