"""The inflation table: one set of trained models under every protocol, side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from stexpr.config import ProtocolConfig, preset_names
from stexpr.errors import ProtocolError
from stexpr.evaluate.aggregate import Aggregate
from stexpr.evaluate.leaderboard import runs_of_board
from stexpr.evaluate.lineup import complete_models
from stexpr.evaluate.markdown import number, table
from stexpr.evaluate.protocol import check_comparable
from stexpr.evaluate.records import Run
from stexpr.evaluate.rescore import fold_predictions, rescore, scoring_protocol
from stexpr.types import Progress, silent

__all__ = ["Inflation", "inflation"]

HONEST: Final = "stexpr"
BEST: Final = 50
ALL: Final = "all"


@dataclass(frozen=True)
class Inflation:
    """What each protocol makes of the same predictions.

    Attributes:
        title: Cohort.
        scores: One row per model and protocol: `model`, `protocol`, `r`, `inflation` (r minus that under `stexpr`),
            `r_best` (of the 50 genes best predicted on the test data), `spearman`, `counted` (in words), `n_genes`, `n_spots`.
        protocols: The protocols, `stexpr` first.
        left_out: Protocols that do not apply to these runs, and runs that are incomplete, with the reason.
    """

    title: str
    scores: pd.DataFrame
    protocols: tuple[ProtocolConfig, ...]
    left_out: tuple[str, ...]

    def markdown(self) -> str:
        """Return the table for people; every leaky protocol says why it is one."""
        models = list(dict.fromkeys(self.scores["model"]))
        names = [protocol.name for protocol in self.protocols]
        cells = {(row["model"], row["protocol"]): row for row in self.scores.to_dict("records")}
        header = ["model", *(f"{one.name} (LEAKY)" if one.leaky else one.name for one in self.protocols)]
        r = [[model, *(_with_inflation(cells[model, name]) for name in names)] for model in models]
        counted = [[model, *(str(cells[model, name]["counted"]) for name in names)] for model in models]
        best = [[model, *(number(cells[model, name]["r_best"]) for name in names)] for model in models]
        first = [cells[models[0], name] for name in names]
        sizes = [f"{row['protocol']}: {row['n_genes']} genes, {row['n_spots']:,} of {row['n_tested']:,} spots" for row in first]
        notes = [f"- **{one.name}** is LEAKY: {'; '.join((*one.leaks, one.why))}." for one in self.protocols if one.leaky]
        parts = [
            f"# The same predictions under {len(names)} protocols: {self.title}",
            "Mean r over genes, and in brackets what the protocol adds to the same predictions against `stexpr`. Networks stay "
            "as they were trained: only the scoring part of a protocol applies (spots, genes among those predicted, unit, "
            "pooling).",
            table(header, r),
            f"The {BEST} genes best predicted *on the test data* (an oracle's choice, as many papers print):",
            table(header, best),
            "What each protocol counts as predicted genes:",
            table(header, counted),
            f"{'; '.join(sizes)}.",
            "\n".join([*notes, *(f"- Left out: {words}." for words in self.left_out)]),
        ]
        return "\n\n".join(part for part in parts if part) + "\n"


def inflation(
    folder: Path, protocols: Sequence[str] = (ALL,), *, cohort: str | None = None, progress: Progress = silent
) -> Inflation:
    """Score the runs of a folder under several protocols.

    Args:
        folder: Folder of runs, all of one protocol and cohort.
        protocols: Presets or YAML files; `all` for every preset. `stexpr` is always among them.
        cohort: Name or hash, to take only the runs on this cohort.
        progress: Shows the models done.

    Returns:
        The table; seeds of one model are averaged.

    Raises:
        DataError: The folder holds no run, or predictions are missing.
        ProtocolError: The runs must not share a table.
        ConfigError: There is no such protocol.
    """
    runs, unfinished = runs_of_board(folder, cohort)
    check_comparable([run.record for run in runs])
    models, incomplete = complete_models(runs)
    wanted = list(dict.fromkeys([HONEST, *(name for one in protocols for name in (preset_names() if one == ALL else [one]))]))
    known = {name: scoring_protocol(name) for name in wanted}
    rows: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    for label, seeds in progress(models.items(), "scoring models", len(models)):
        rows += _model_rows(label, seeds, known, left_out)
    scores = pd.DataFrame([row for row in rows if row["protocol"] not in left_out])
    honest = scores[scores["protocol"] == HONEST].set_index("model")["r"]
    scores.insert(3, "inflation", scores["r"] - honest.loc[scores["model"]].to_numpy())
    order = honest.sort_values(ascending=False, kind="stable").index
    scores["model"] = pd.Categorical(scores["model"], order)
    scores = scores.sort_values("model", kind="stable").astype({"model": str}).reset_index(drop=True)
    used = tuple(protocol for name, protocol in known.items() if name not in left_out)
    absent = (*(f"{name}: {why}" for name, why in left_out.items()), *(note.rstrip(".") for note in incomplete), *unfinished)
    return Inflation(runs[0].record.cohort.name, scores, used, absent)


def _model_rows(
    label: str, seeds: Mapping[int, list[Run]], protocols: Mapping[str, ProtocolConfig], left_out: dict[str, str]
) -> list[dict[str, Any]]:
    by_seed = [[fold_predictions(run) for run in runs] for runs in seeds.values()]
    rows = []
    for name, protocol in protocols.items():
        try:
            scored = [rescore(folds, protocol) for folds in by_seed]
        except ProtocolError as err:
            left_out[name] = str(err)
            continue
        scores = [aggregate for aggregate, _ in scored]
        rows.append(
            {
                "model": label,
                "protocol": name,
                "r": float(np.mean([one.values["pearson"] for one in scores])),
                "r_best": float(np.mean([_best(one) for one in scores])),
                "spearman": float(np.mean([one.values["spearman"] for one in scores])),
                "counted": _counted(scores[0], protocol),
                "n_genes": int((scores[0].genes["n_patients"] > 0).sum()),
                "n_spots": scored[0][1],
                "n_tested": sum(len(fold.spots) for fold in by_seed[0]),
            }
        )
    return rows


def _best(scores: Aggregate) -> float:
    if np.isnan(scores.values["pearson"]):
        return np.nan
    return float(scores.genes["pearson"].nlargest(BEST).mean())


def _counted(scores: Aggregate, protocol: ProtocolConfig) -> str:
    if protocol.counted == "none" or scores.genes_above_0 is None:
        return "–"
    if protocol.counted == "median_r":
        return f"{scores.genes_above_0} above 0, {scores.genes_above_half} above .5"
    return str(scores.gene_test)


def _with_inflation(row: Mapping[Any, Any]) -> str:
    if row["protocol"] == HONEST or np.isnan(row["r"]) or np.isnan(row["inflation"]):
        return number(row["r"])
    return f"{number(row['r'])} ({row['inflation']:+.3f})"
