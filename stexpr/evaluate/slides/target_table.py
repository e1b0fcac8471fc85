"""Every head on every target: scored within folds, with an interval and a permutation p, seeds and partitions averaged.

Seeds and repeated partitions score the same patients again. Their bounds and p-values are averaged like the scores, which
never makes an interval narrower than one cross-validation's.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from stexpr.config.slides import SlideProtocol
from stexpr.evaluate.slides.heads import CrossValidation, HeadLine
from stexpr.evaluate.slides.held_out import HeldOut, score_folds
from stexpr.evaluate.slides.held_targets import TestedTarget
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.measures import MEASURES
from stexpr.evaluate.slides.resampling import Draws, bootstrap_interval, permutation_p
from stexpr.evaluate.slides.screen import screen_genes
from stexpr.evaluate.testing import ALPHA, benjamini_hochberg
from stexpr.types import Progress, silent

__all__ = ["label_strata", "target_table", "tested_counts"]

AVERAGED: Final = ("score", "low", "high", "pooled", "p")
COLUMNS: Final = (
    *("model", "kind", "target", "target_kind", "measure", "n_patients", "n_positive", "n_folds"),
    *("score", "low", "high", "interval", "n_seeds", "seed_sd", "p", "q", "significant", "pooled", "reason"),
)
POSITIVES: Final = ("binary", "survival")
"""Kinds of which positive patients (or events) are counted."""


def target_table(
    lines: Sequence[HeadLine], protocol: SlideProtocol, draws: Draws, progress: Progress = silent
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score every head on every target by the measure that ranks heads on it.

    Args:
        lines: The heads.
        protocol: Says how few positive patients are too few for a test.
        draws: How often to draw.
        progress: Shows the heads scored.

    Returns:
        By head and target: `model`, `kind`, `target`, `target_kind`, `measure`, `n_patients`, `n_positive` (or events),
        `n_folds` (defined, of the first cross-validation), `score` within folds, `low`, `high`, `interval` (what it covers, or
        why there is none), `n_seeds`, `seed_sd`, `p` (one-sided, by permutation), `q` (over the binary targets of the head that
        were tested), `significant`, `pooled` (over all patients at once), `reason` (why not tested or undefined; else empty).
        And by head, target and `seed` the `score`, partitions averaged.
    """
    rows, seeds = list[dict[str, Any]](), list[dict[str, Any]]()
    for line in progress(lines, "scoring heads", len(lines)):
        by_target: dict[str, list[tuple[int, dict[str, Any]]]] = {}
        for validation in line.validations:
            for name, found in _of_validation(validation, protocol.min_positives, draws).items():
                by_target.setdefault(name, []).append((validation.seed, found))
        for name, parts in by_target.items():
            of_seeds = _seed_scores(parts)
            rows.append({"model": line.label, "kind": line.first.kind, **_averaged([row for _, row in parts], of_seeds)})
            seeds += [{"model": line.label, "target": name, "seed": seed, "score": one} for seed, one in of_seeds.items()]
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    table["q"], table["significant"] = np.nan, False
    for label in table["model"].unique():
        own = (table["model"] == label) & (table["target_kind"] == "binary")
        q, _ = benjamini_hochberg(table.loc[own, "p"].to_numpy(dtype=np.float64), ALPHA)
        table.loc[own, "q"] = q
    judged = table["q"].where(table["target_kind"] == "binary", table["p"])
    table["significant"] = judged <= ALPHA
    table["n_positive"] = table["n_positive"].astype("Int64")
    return table, pd.DataFrame(seeds, columns=["model", "target", "seed", "score"])


def label_strata(target: TestedTarget) -> list[str] | None:
    """Name what a bootstrap draws within, so that a rare label stands in every replicate; None where labels are numbers."""
    if target.info.kind in ("fraction", "continuous"):
        return None
    labels: list[str] = target.truth[-1].astype(str).tolist()
    return labels


def tested_counts(target: TestedTarget) -> tuple[int, int | None, int]:
    """Count patients, the positive among them (or those with the event; else None), and the fewest of a label that is tested.

    The last is of the rarer label of a binary target, events, or patients of the second largest class; of numbers, all.
    """
    n, kind = len(target), target.info.kind
    if kind in POSITIVES:
        positive = int(target.truth[-1].sum())
        return n, positive, min(positive, n - positive) if kind == "binary" else positive
    if target.info.classes:
        return n, None, int(np.sort(np.bincount(target.truth[0], minlength=2))[-2])
    return n, None, n


def _of_validation(validation: CrossValidation, fewest: int, draws: Draws) -> dict[str, dict[str, Any]]:
    binary = {name: one for name, one in validation.targets.items() if one is not None and one.info.kind == "binary"}
    screened = _screened(binary, fewest, draws) if binary else {}
    found = {}
    for name, target in validation.targets.items():
        if target is not None:
            found[name] = screened.get(name) or _scored(target, fewest, draws)
    return found


def _screened(targets: Mapping[str, TestedTarget], fewest: int, draws: Draws) -> dict[str, dict[str, Any]]:
    """Screen the binary targets of one cross-validation; enough shuffles are drawn that a lone gene can be found among all."""
    predicted, mutated, held_out = _matrices(targets)
    tested = sum(tested_counts(target)[2] >= fewest for target in targets.values())
    shuffles = max(draws.permutations, math.ceil(2 * tested / ALPHA) - 1)
    resampling = {"permutations": shuffles, "replicates": draws.replicates, "seed": draws.seed}
    table = screen_genes(predicted, mutated, list(targets), held_out, fewest=fewest, **resampling)
    table = table.rename(columns={"auroc": "score", "auroc_pooled": "pooled"}).drop(columns=["auprc", "q", "significant"])
    described = {"target_kind": "binary", "measure": MEASURES["binary"][0].name}
    return {
        str(gene): {"target": str(gene), **described, **{str(key): value for key, value in row.items()}}
        for gene, row in table.to_dict("index").items()
    }


def _matrices(targets: Mapping[str, TestedTarget]) -> tuple[Array, Array, HeldOut]:
    """Lay targets side by side: patients x targets, a patient without a label is NaN."""
    fold_of = {
        patient: fold
        for target in targets.values()
        for patient, fold in zip(target.held_out.patients, target.held_out.folds, strict=True)
    }
    patients = sorted(fold_of, key=lambda patient: (fold_of[patient], patient))
    row = {patient: place for place, patient in enumerate(patients)}
    predicted, mutated = np.zeros((len(patients), len(targets))), np.full((len(patients), len(targets)), np.nan)
    for column, target in enumerate(targets.values()):
        own = [row[patient] for patient in target.held_out.patients]
        predicted[own, column], mutated[own, column] = target.value, target.truth[0]
    return predicted, mutated, HeldOut(tuple(patients), tuple(fold_of[patient] for patient in patients))


def _scored(target: TestedTarget, fewest: int, draws: Draws) -> dict[str, Any]:
    measure = MEASURES[target.info.kind][0]
    n, positive, least = tested_counts(target)
    row: dict[str, Any] = {"target": target.info.name, "target_kind": target.info.kind, "measure": measure.name}
    row |= {"n_patients": n, "n_positive": positive}
    if least < fewest:
        what = {"survival": "events"}.get(target.info.kind, "patients of a second class" if positive is None else "positive")
        undefined = dict.fromkeys(AVERAGED, np.nan)
        return {**row, "n_folds": 0, **undefined, "interval": "", "reason": f"not tested: {least} {what}, needs {fewest}"}
    metric, arrays = measure.metric(target), (target.value, *target.truth)
    scores = score_folds(metric, target.held_out, *arrays)
    seed, strata = draws.seed, label_strata(target)
    interval = bootstrap_interval(metric, target.held_out, *arrays, strata=strata, n=draws.replicates, seed=seed)
    p = permutation_p(metric, target.held_out, *arrays, greater=measure.greater, n=draws.permutations, seed=seed)
    return row | {
        "n_folds": len(scores.values) - len(scores.undefined),
        "score": scores.mean,
        "low": interval.low,
        "high": interval.high,
        "pooled": scores.pooled,
        "p": p,
        "interval": interval.kind,
        "reason": "; ".join(f"fold {fold}: {why}" for fold, why in scores.undefined.items()),
    }


def _seed_scores(parts: Sequence[tuple[int, Mapping[str, Any]]]) -> dict[int, float]:
    seeds = dict.fromkeys(seed for seed, _ in parts)
    return {seed: float(np.mean([row["score"] for own, row in parts if own == seed])) for seed in seeds}


def _averaged(rows: Sequence[Mapping[str, Any]], of_seeds: Mapping[int, float]) -> dict[str, Any]:
    """Average one head's cross-validations on one target; NaN in any of them stays NaN."""
    found = {**rows[0], **{name: float(np.mean([row[name] for row in rows])) for name in AVERAGED}}
    found["n_seeds"] = len(of_seeds)
    found["seed_sd"] = float(np.std(list(of_seeds.values()), ddof=1)) if len(of_seeds) > 1 else np.nan
    found["interval"] = next((row["interval"] for row in rows if np.isnan(row["low"])), found["interval"])
    if len(rows) > 1 and not np.isnan(found["low"]):
        found["interval"] += f"; bounds averaged over {len(rows)} cross-validations"
    found["reason"] = "; ".join(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
    return found
