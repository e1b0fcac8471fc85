"""The sentences below a slide board: do heads see more than colors, what was not tested, what is undefined."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stexpr.evaluate.slides.detail_tables import DetailTables
from stexpr.evaluate.slides.heads import HeadLine
from stexpr.evaluate.slides.measures import heading_of

__all__ = ["slide_notes"]


def slide_notes(
    lines: Sequence[HeadLine],
    models: pd.DataFrame,
    targets: pd.DataFrame,
    comparisons: pd.DataFrame,
    shown: Sequence[str],
    details: DetailTables,
) -> list[str]:
    """Say what a board shows and what it lacks.

    Args:
        lines: The heads, best first.
        models: As `models_table` makes it.
        targets: As `target_table` makes it.
        comparisons: As `head_tests` makes it.
        shown: Targets looked into one by one.
        details: Calibration, confounders, subgroups.

    Returns:
        One sentence or a few per note, the most important first.
    """
    tested = targets[targets["n_folds"] > 0]
    names, every = list(dict.fromkeys(tested["target"])), list(dict.fromkeys(targets["target"]))
    notes = [*_against_color(lines, models, comparisons), *_found(models, targets)]
    rare = targets[(targets["n_folds"] == 0)].drop_duplicates("target")
    if len(rare):
        words = [f"{row['target']} ({row['reason'].removeprefix('not tested: ')})" for row in rare.to_dict("records")]
        notes.append(f"Not tested, {len(rare)} of {len(every)} targets: {'; '.join(words)}.")
    unlabeled = {name for line in lines for name, target in line.validations[0].targets.items() if target is None}
    if unlabeled:
        notes.append(f"No test patient has a label of {', '.join(sorted(unlabeled))}.")
    if len(shown) < len(names):
        notes.append(
            f"{len(names)} targets were tested. Compared, and looked into by confounder and subgroup, are the {len(shown)} "
            f"with the smallest p of any head: {', '.join(shown)}."
        )
    for reason, part in tested[tested["reason"] != ""].groupby("reason", sort=False):
        whom = ", ".join(dict.fromkeys(part["target"]))
        notes.append(f"{whom}: {reason}; such folds are left out of the mean for every head, where labels are the reason.")
    undefined = models.loc[models["score"].isna(), "model"].tolist()
    if undefined:
        notes.append(f"The score of {', '.join(undefined)} is undefined (–), and ranked last.")
    if len(details.calibration):
        for reason, part in details.calibration[details.calibration["reason"] != ""].groupby("reason", sort=False):
            notes.append(f"Not calibrated, {', '.join(dict.fromkeys(part['target']))}: {reason}.")
    return notes


def _against_color(lines: Sequence[HeadLine], models: pd.DataFrame, comparisons: pd.DataFrame) -> list[str]:
    """Say which heads beat the same head on colors alone, by their first comparison: the mean where targets are many."""
    heads = [line for line in lines if not line.is_baseline]
    if not heads:
        return []
    if not any(line.is_baseline for line in lines):
        return [
            "There is no color baseline on this board, so nothing shows that a head sees more than stain and site; train the "
            "same head with instances=color."
        ]
    baseline = {line.label: line.baseline_among(lines) for line in heads}
    found: list[dict[Any, Any]] = []
    for label, other in baseline.items():
        own = comparisons[(comparisons["a"] == label) & (comparisons["b"] == (other.label if other else ""))]
        found += own.head(1).to_dict("records")
    if not found:
        return ["No target could be tested, so no head is held against its color baseline."]
    score = dict(zip(models["model"], models["score"], strict=True))
    better = [row["a"] for row in found if row["verdict"] == f"{row['a']} beats {row['b']}"]
    best = max(found, key=lambda row: np.nan_to_num(score[row["a"]], nan=-np.inf))
    bounds = "" if np.isnan(best["low"]) else f", {best['low']:+.3f} to {best['high']:+.3f}"
    about = f"{best['target']}, {heading_of(best['measure'])}: {best['difference']:+.3f}{bounds}, p {_p(best['p_holm'])}, Holm"
    verdict = f"{len(better)} of {len(heads)} heads beat their color baseline: {', '.join(better)}." if better else ""
    verdict = verdict or "No head beats its color baseline."
    alone = comparisons[(comparisons["a"] == best["a"]) & (comparisons["b"] == best["b"])]
    alone = alone[(alone["target"] != best["target"]) & (alone["verdict"] == f"{best['a']} beats {best['b']}")]
    on = f" Taken one by one, it beats it on {', '.join(alone['target'])}." if len(alone) else ""
    return [f"{verdict} The best head, {best['a']}, against {best['b']} ({about}).{on}"]


def _found(models: pd.DataFrame, targets: pd.DataFrame) -> list[str]:
    """Say which of the yes-or-no targets the leading head sees."""
    heads = models.loc[models["kind"] != "baseline", "model"]
    if not len(heads):
        return []
    leader = str(heads.iloc[0])
    screen = targets[(targets["model"] == leader) & (targets["target_kind"] == "binary") & (targets["n_folds"] > 0)]
    if not len(screen):
        return []
    seen = screen[screen["significant"]].sort_values("score", ascending=False)
    named = ", ".join(f"{row['target']} ({row['score']:.3f})" for row in seen.head(12).to_dict("records"))
    more = f" and {len(seen) - 12} more" if len(seen) > 12 else ""
    words = f": {named}{more}" if len(seen) else ""
    return [f"{leader} predicts {len(seen)} of {len(screen)} yes-or-no targets at a false discovery rate of 5 %{words}."]


def _p(value: float) -> str:
    return "< .001" if value < 0.001 else f"{value:.3f}".removeprefix("0")
