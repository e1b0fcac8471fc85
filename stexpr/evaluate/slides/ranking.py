"""Heads in order: by the mean, over targets of the protocol's first kind, of the score that ranks heads on them."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from stexpr.evaluate.slides.heads import HeadLine
from stexpr.evaluate.slides.measures import HORIZON_SCORES, MEASURES, score_target
from stexpr.types import Progress, silent

__all__ = ["all_scores", "models_table", "shown_targets"]

MOST_SHOWN: Final = 8
"""More targets than these are not compared and looked into one by one."""
WHOLE_NUMBERS: Final = ("rank", "n_targets", "n_significant", "n_seeds", "n_partitions", "n_patients", "parameters")


def models_table(lines: Sequence[HeadLine], targets: pd.DataFrame, seeds: pd.DataFrame) -> pd.DataFrame:
    """Rank heads; one whose score is undefined comes last.

    Args:
        lines: The heads.
        targets: As `target_table` makes it.
        seeds: Scores by seed, likewise.

    Returns:
        By head, best first: `rank`, `model`, `kind`, `encoder`, `head`, `instances`, `measure`, `score` (mean over the tested
        targets of the first kind), `low`, `high` and `interval` (of a single target, else NaN), `n_targets`, `n_significant`,
        `n_seeds`, `seed_sd`, `n_partitions`, `n_patients`, the mean score of every other kind as `<kind>_<measure>`, `epochs`,
        `minutes` (over all folds, mean of seeds) and `parameters`.
    """
    rows = []
    for line in lines:
        own = targets[(targets["model"] == line.label) & (targets["n_folds"] > 0)]
        rows.append(_row(line, own, seeds[seeds["model"] == line.label]))
    table = pd.DataFrame(rows)
    table = table.sort_values(["score", "model"], ascending=[False, True], kind="stable", na_position="last")
    table = table.reset_index(drop=True)
    table.insert(0, "rank", range(1, len(table) + 1))
    for column in WHOLE_NUMBERS:
        table[column] = table[column].astype("Int64")
    return table


def shown_targets(targets: pd.DataFrame) -> list[str]:
    """Choose the targets that are looked into one by one: all where they are few, else those of the smallest p of any head."""
    tested = targets[targets["n_folds"] > 0]
    names = list(dict.fromkeys(tested["target"]))
    if len(names) <= MOST_SHOWN:
        return names
    heads = tested[tested["kind"] != "baseline"]
    best = (heads if len(heads) else tested).groupby("target")["p"].min()
    score = (heads if len(heads) else tested).groupby("target")["score"].max()
    order = sorted(best.index, key=lambda name: (best[name], -score[name], name))
    return [name for name in names if name in order[:MOST_SHOWN]]


def all_scores(lines: Sequence[HeadLine], targets: pd.DataFrame, progress: Progress = silent) -> pd.DataFrame:
    """Score every head on every tested target by every measure, seeds and partitions averaged.

    Returns:
        By head, target and measure: `model`, `target`, `measure`, `heading`, `score`, `pooled`, `reason`.
    """
    rows = []
    for line in progress(lines, "all scores", len(lines)):
        for name in targets.loc[(targets["model"] == line.label) & (targets["n_folds"] > 0), "target"]:
            found = [score_target(target) for target in line.tested(str(name))]
            kind = line.tested(str(name))[0].info.kind
            headings = {measure.name: measure.heading for measure in MEASURES[kind]} | HORIZON_SCORES
            for measure in found[0]:
                undefined = dict.fromkeys(
                    f"fold {fold}: {why}" for scores in found for fold, why in scores[measure].undefined.items()
                )
                rows.append(
                    {
                        "model": line.label,
                        "target": str(name),
                        "measure": measure,
                        "heading": headings[measure],
                        "score": float(np.mean([scores[measure].mean for scores in found])),
                        "pooled": float(np.mean([scores[measure].pooled for scores in found])),
                        "reason": "; ".join(undefined),
                    }
                )
    return pd.DataFrame(rows, columns=["model", "target", "measure", "heading", "score", "pooled", "reason"])


def _row(line: HeadLine, own: pd.DataFrame, seeds: pd.DataFrame) -> dict[str, Any]:
    kinds = [info.info.kind for info in line.validations[0].targets.values() if info is not None]
    first = kinds[0] if kinds else "binary"
    main, others = own[own["target_kind"] == first], own[own["target_kind"] != first]
    of_seeds = (
        seeds[seeds["target"].isin(main["target"])].groupby("seed")["score"].agg(lambda scores: scores.mean(skipna=False))
    )
    alone = main.iloc[0] if len(main) == 1 else None
    records = [record for folds in line.records.values() for record in folds]
    chosen = sorted({record.epochs.chosen for record in records if record.epochs})
    parameters = [record.parameters for record in records if record.parameters is not None]
    model = line.first.model
    return {
        "model": line.label,
        "kind": line.first.kind,
        "encoder": line.first.bags.encoder,
        "head": model.get("head"),
        "instances": model.get("instances"),
        "measure": MEASURES[first][0].name,
        "score": main["score"].mean(skipna=False) if len(main) else np.nan,
        "low": np.nan if alone is None else alone["low"],
        "high": np.nan if alone is None else alone["high"],
        "interval": None if alone is None else alone["interval"],
        "n_targets": len(own),
        "n_significant": int(own["significant"].sum()),
        "n_seeds": len(line.records),
        "seed_sd": float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else np.nan,
        "n_partitions": len({validation.repeat for validation in line.validations}),
        "n_patients": len({patient for record in records for patient in record.fold.test_patients}),
        **{
            f"{kind}_{part['measure'].iloc[0]}": part["score"].mean(skipna=False)
            for kind, part in others.groupby("target_kind", sort=False)
        },
        "epochs": None if not chosen else str(chosen[0]) if len(chosen) == 1 else f"{chosen[0]}–{chosen[-1]}",
        "minutes": sum(record.wall_time_s for record in records) / 60 / len(line.records),
        "parameters": max(parameters) if parameters else None,
    }
