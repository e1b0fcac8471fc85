"""Models and genes ranked, as a pure function of records and the score tables beside them.

Models are ranked by mean per-gene r; a model whose r is undefined (the training mean) follows, by R². Seeds of one model
are averaged per gene and section before anything else, and their SD is shown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from stexpr.config.files import write_whole
from stexpr.errors import ProtocolError
from stexpr.evaluate.aggregate import (
    CEILINGS,
    MAPS,
    UNPREDICTABLE,
)
from stexpr.evaluate.comparison import compare_models
from stexpr.evaluate.lines import Line, read_lines
from stexpr.evaluate.lineup import complete_models
from stexpr.evaluate.markdown import refuse_other_board, render
from stexpr.evaluate.notes import gap_notes, gene_notes, network_notes
from stexpr.evaluate.protocol import check_comparable, protocol_name, select_runs
from stexpr.evaluate.protocol_card import protocol_card
from stexpr.evaluate.records import Run, read_records
from stexpr.types import Progress, silent

__all__ = ["Leaderboard", "build_leaderboard", "leaderboard", "runs_of_board"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

TOP = 4
"""Leading models that are compared with each other."""
IMAGELESS = ("depth_only", "spot_coordinates")
WHOLE_NUMBERS = ("rank", "genes_median_r_above_0", "genes_median_r_above_0.5", "genes_spatial", "parameters")


@dataclass(frozen=True)
class Leaderboard:
    """One protocol's table.

    Attributes:
        title: Cohort and protocol.
        card: The protocol in words, heading and sentence.
        models: One row per model, best first; undefined values are NaN or None.
        patients: r by model and patient, models as in `models`.
        genes: One row per gene, best first by the leading network (the leading model where there is none), with its noise
            ceiling; then one column of mean r per model.
        comparisons: Each model against the color ridge, and the leading ones with each other, tested over patients.
        notes: What was left out, undefined or incomplete, and whether networks beat the color ridge.
    """

    title: str
    card: list[tuple[str, str]]
    models: pd.DataFrame
    patients: pd.DataFrame
    genes: pd.DataFrame
    comparisons: pd.DataFrame
    notes: list[str]

    def markdown(self) -> str:
        """Return the board for people: protocol first, then the tables, then the notes."""
        return render(self)

    def tables(self) -> dict[str, str]:
        """Return the tables as CSV, by file name; numbers to six decimals."""
        patients = self.patients.add_prefix("r_patient_").reset_index(drop=True)
        frames = {
            "leaderboard.csv": self.models.reset_index(drop=True).join(patients),
            "per_gene.csv": self.genes,
            "patients.csv": self.patients.reset_index(),
            "comparisons.csv": self.comparisons,
        }
        return {name: frame.to_csv(index=False, float_format="%.6f", lineterminator="\n") for name, frame in frames.items()}

    def write(self, folder: Path) -> list[Path]:
        """Write the tables, `leaderboard.md` and `leaderboard.png`, each whole or not at all.

        The same records give the same bytes in the three texts.

        Raises:
            DataError: The folder cannot be written.
            ProtocolError: It holds the board of another cohort or protocol.
        """
        refuse_other_board(folder / "leaderboard.md", self.markdown())
        from stexpr.evaluate.figures import leaderboard_figure, save_figure

        texts = {**self.tables(), "leaderboard.md": self.markdown()}
        for name, text in texts.items():
            write_whole(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
        write_whole(
            folder / "leaderboard.png", partial(save_figure, leaderboard_figure(self.title, self.models, self.patients))
        )
        return [*(folder / name for name in texts), folder / "leaderboard.png"]


def build_leaderboard(
    folder: Path, *, cohort: str | None = None, protocol: str | None = None, progress: Progress = silent
) -> Leaderboard:
    """Rank the runs of a folder.

    Args:
        folder: Folder of runs.
        cohort: Name or hash, to take only the runs on this cohort.
        protocol: Name or hash, to take only the runs under this protocol.
        progress: Shows the runs read.

    Returns:
        The board; runs that did not finish are named in its notes.

    Raises:
        DataError: The folder holds no run, or a run lacks a file.
        ProtocolError: The runs must not share a table, or a baseline is missing.
    """
    runs, unfinished = runs_of_board(folder, cohort, protocol)
    return leaderboard(runs, unfinished=unfinished, progress=progress)


def runs_of_board(folder: Path, cohort: str | None = None, protocol: str | None = None) -> tuple[list[Run], list[str]]:
    """Read the finished runs of a folder that are on one cohort and under one protocol.

    Returns:
        The runs; and the unfinished ones, in words.

    Raises:
        DataError: The folder holds no run.
        ProtocolError: None of its runs finished, or none is left.
    """
    found = read_records(folder)
    if found.incomplete and not found.complete:
        raise ProtocolError(f"none of {len(found.incomplete)} runs in {folder} finished; start stexpr train again to resume")
    unfinished = [reason.replace(str(path), path.name) for path, reason in found.incomplete]
    return select_runs(found.complete, cohort, protocol), unfinished


def leaderboard(runs: Sequence[Run], *, unfinished: Sequence[str] = (), progress: Progress = silent) -> Leaderboard:
    """Rank models and genes.

    Args:
        runs: Finished runs of one task, protocol, cohort and split.
        unfinished: Runs to name as unfinished.
        progress: Shows the runs read.

    Returns:
        The board.

    Raises:
        DataError: A run lacks a file.
        ProtocolError: The runs must not share a table, or a baseline is missing.
    """
    check_comparable([run.record for run in runs])
    models, incomplete = complete_models(runs)
    lines = read_lines(models, progress)
    lines.sort(key=_rank_key)
    table = pd.DataFrame([_row(None if line.is_reference else rank, line) for rank, line in enumerate(lines, start=1)])
    for column in WHOLE_NUMBERS:
        table[column] = table[column].astype("Int64")
    patients = pd.DataFrame({line.label: line.scores.patients["pearson"] for line in lines}).T
    patients = patients[sorted(patients.columns)]
    patients.index.name = "model"
    records = [record for line in lines for folds in line.records.values() for record in folds]
    ridge = next(line for line in lines if line.first.model["kind"] == "color_ridge")
    comparisons = compare_models(
        patients.drop(index=[line.label for line in lines if line.is_reference]), reference=ridge.label, top=TOP
    )
    networks = [(line.label, *line.minus(ridge)) for line in lines if line.first.kind == "network"]
    imageless = {line.label: float(line.scores.values["pearson"]) for line in lines if line.first.model["kind"] in IMAGELESS}
    left_out = lines[0].scores.left_out
    constant = {line.label: (line.scores.constant_predictions, int(np.isnan(line.scores.values["pearson"]))) for line in lines}
    intervals = [kind for kind in table["interval"] if kind]
    first = records[0]
    return Leaderboard(
        title=f"{first.cohort.name}, protocol {protocol_name(first.protocol)}",
        card=protocol_card(records, intervals[0] if intervals else "none"),
        models=table,
        patients=patients,
        genes=_genes(lines),
        comparisons=comparisons,
        notes=[
            *network_notes(networks, ridge.label, float(ridge.scores.values["pearson"]), comparisons, imageless),
            *gene_notes(left_out, constant),
            *incomplete,
            *gap_notes(records, unfinished),
        ],
    )


def _rank_key(line: Line) -> tuple[bool, bool, float, float, str]:
    r, r2 = float(line.scores.values["pearson"]), float(line.scores.values["r2"])
    return line.is_reference, bool(np.isnan(r)), -float(np.nan_to_num(r)), -float(np.nan_to_num(r2)), line.label


def _row(rank: int | None, line: Line) -> dict[str, Any]:
    scores, interval, seeds = line.scores, line.interval(), list(line.records.values())
    chosen = sorted({record.epochs.chosen for folds in seeds for record in folds if record.epochs})
    parameters = [record.parameters for folds in seeds for record in folds if record.parameters is not None]
    minutes = float(np.mean([sum(record.wall_time_s for record in folds) for folds in seeds])) / 60
    return {
        "rank": rank,
        "model": line.label,
        "kind": line.first.kind,
        "r": scores.values["pearson"],
        "r_low": interval.low,
        "r_high": interval.high,
        "interval": interval.kind or None,
        "n_seeds": len(seeds),
        "r_seed_sd": float(line.seed_r.std(ddof=1)) if len(seeds) > 1 else np.nan,
        **{metric: scores.values[metric] for metric in ("spearman", "rmse", "mae", "r2")},
        "ceiling": scores.values["ceiling"],
        "r_over_ceiling": scores.r_over_ceiling,
        "ceiling_depth_blind": scores.values["ceiling_depth_blind"],
        **{name: scores.values[name] for name in ("slope", "r_within_depth")},
        **{f"r_{name}": getattr(line.pooled, name) for name in ("pooled", "within", "between")},
        **{name: scores.values[name] for name in MAPS},
        "genes_median_r_above_0": scores.genes_above_0,
        "genes_median_r_above_0.5": scores.genes_above_half,
        "genes_above_chance": str(scores.gene_test),
        "genes_fdr": str(scores.gene_test_fdr),
        "genes_spatial": scores.genes_spatial,
        "n_genes": int((scores.genes["n_patients"] > 0).sum()),
        "n_patients": sum(record.n.patients for record in seeds[0]),
        "n_sections": sum(record.n.sections for record in seeds[0]),
        "n_spots": sum(record.n.spots for record in seeds[0]),
        "epochs": None if not chosen else str(chosen[0]) if len(chosen) == 1 else f"{chosen[0]}–{chosen[-1]}",
        "minutes": minutes,
        "parameters": max(parameters) if parameters else None,
    }


def _genes(lines: Sequence[Line]) -> pd.DataFrame:
    """Rank genes by the leading network's mean r; one column of mean r per model."""
    leader = next((line for line in lines if line.first.kind == "network"), lines[0])
    table = pd.DataFrame({line.label: line.scores.genes["pearson"] for line in lines})
    measured = lines[0].scores.genes[["n_patients", *CEILINGS]].reindex(table.index)
    table = table.assign(**{"": table.index}).sort_values([leader.label, ""], ascending=[False, True]).drop(columns="")
    ranked = table.reset_index(names="gene")
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    measured["unpredictable"] = measured["ceiling"] < UNPREDICTABLE
    for place, (name, column) in enumerate(measured.items(), start=2):
        ranked.insert(place, str(name), column.loc[ranked["gene"]].to_numpy())
    return ranked
