"""Models and genes ranked, as a pure function of records and the score tables beside them.

Models are ranked by mean per-gene r; a model whose r is undefined (the training mean) follows, by R². Seeds of one model
are averaged per gene and section before anything else, and their SD is shown.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from stexpr.config.files import write_whole
from stexpr.errors import DataError, ProtocolError
from stexpr.evaluate.aggregate import KEYS, Aggregate, aggregate, aggregate_replicates, average_seeds
from stexpr.evaluate.intervals import T_FROM, Interval, patient_interval
from stexpr.evaluate.lineup import complete_models
from stexpr.evaluate.markdown import render
from stexpr.evaluate.notes import board_notes
from stexpr.evaluate.protocol import check_comparable, protocol_card, select_runs
from stexpr.evaluate.records import Record, Run, read_records
from stexpr.evaluate.score import read_per_gene, read_replicates
from stexpr.types import Progress, silent

__all__ = ["Leaderboard", "build_leaderboard", "leaderboard"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Leaderboard:
    """One protocol's table.

    Attributes:
        title: Cohort and protocol.
        card: The protocol in words, heading and sentence.
        models: One row per model, best first; undefined values are NaN or None.
        patients: r by model and patient, models as in `models`.
        genes: One row per gene, best first by the leading model; then one column of mean r per model.
        notes: What was left out, undefined or incomplete, and whether networks beat the color ridge.
    """

    title: str
    card: list[tuple[str, str]]
    models: pd.DataFrame
    patients: pd.DataFrame
    genes: pd.DataFrame
    notes: list[str]

    def markdown(self) -> str:
        """Return the board for people: protocol first, then the tables, then the notes."""
        return render(self.title, self.card, self.models, self.patients, self.genes, self.notes)

    def write(self, folder: Path) -> list[Path]:
        """Write `leaderboard.csv`, `leaderboard.md`, `per_gene.csv` and `leaderboard.png`, each whole or not at all.

        The same records give the same bytes in the three texts.

        Raises:
            DataError: The folder cannot be written.
            ProtocolError: It holds the board of another cohort or protocol.
        """
        self._refuse_other_board(folder / "leaderboard.md")
        from stexpr.evaluate.figures import leaderboard_figure, save_figure

        patients = self.patients.add_prefix("r_patient_").reset_index(drop=True)
        models = pd.concat([self.models.reset_index(drop=True), patients], axis=1)
        texts = {
            "leaderboard.csv": models.to_csv(index=False, float_format="%.6f", lineterminator="\n"),
            "leaderboard.md": self.markdown(),
            "per_gene.csv": self.genes.to_csv(index=False, float_format="%.6f", lineterminator="\n"),
        }
        for name, text in texts.items():
            write_whole(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
        write_whole(
            folder / "leaderboard.png", partial(save_figure, leaderboard_figure(self.title, self.models, self.patients))
        )
        return [*(folder / name for name in texts), folder / "leaderboard.png"]

    def _refuse_other_board(self, path: Path) -> None:
        if not path.is_file():
            return
        there = path.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
        here = self.markdown().partition("\n")[0]
        if there != here:
            raise ProtocolError(f"{path} holds another board ({there!r}, not {here!r}); give another folder with --output")


@dataclass(frozen=True)
class Line:
    """One model of the board: its records by seed and fold, and its scores."""

    label: str
    records: dict[int, list[Record]]  # seed -> one record per fold, in the order of folds
    scores: Aggregate
    seed_r: Float[Array, "seeds"]
    replicates: Float[Array, "R"] | None

    @property
    def first(self) -> Record:
        """Return any record of the model, for what all of them share."""
        return next(iter(self.records.values()))[0]

    def interval(self) -> Interval:
        """Return the interval of mean r."""
        if np.isnan(self.scores.values["pearson"]):
            return Interval(np.nan, np.nan, "")
        return patient_interval(self.scores.patient_gene, self.replicates)

    def minus(self, other: "Line") -> tuple[float, Interval]:
        """Return the difference of mean r to another model, with the interval of paired patients or paired replicates."""
        drawn = None if self.replicates is None or other.replicates is None else self.replicates - other.replicates
        point = float(self.scores.values["pearson"] - other.scores.values["pearson"])
        return point, patient_interval(self.scores.patient_gene - other.scores.patient_gene, drawn)


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
    found = read_records(folder)
    if found.incomplete and not found.complete:
        raise ProtocolError(f"none of {len(found.incomplete)} runs in {folder} finished; start stexpr train again to resume")
    runs = select_runs(found.complete, cohort, protocol)
    return leaderboard(
        runs, unfinished=[reason.replace(str(path), path.name) for path, reason in found.incomplete], progress=progress
    )


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
    lines = _lines(models, progress)
    lines.sort(key=_rank_key)
    table = pd.DataFrame([_row(rank, line) for rank, line in enumerate(lines, start=1)])
    for column in ("genes_median_r_above_0", "genes_median_r_above_0.5", "parameters"):
        table[column] = table[column].astype("Int64")
    patients = pd.DataFrame({line.label: line.scores.patients["pearson"] for line in lines}).T
    patients = patients[sorted(patients.columns)]
    patients.index.name = "model"
    records = [record for line in lines for folds in line.records.values() for record in folds]
    ridge = next(line for line in lines if line.first.model["kind"] == "color_ridge")
    networks = [(line.label, *line.minus(ridge)) for line in lines if line.first.kind == "network"]
    left_out = lines[0].scores.left_out
    constant = {line.label: (line.scores.constant_predictions, int(np.isnan(line.scores.values["pearson"]))) for line in lines}
    intervals = [kind for kind in table["interval"] if kind]
    first = records[0]
    return Leaderboard(
        title=f"{first.cohort.name}, protocol {first.protocol.get('name', 'unnamed')}",
        card=protocol_card(records, intervals[0] if intervals else "none"),
        models=table,
        patients=patients,
        genes=_genes(lines),
        notes=board_notes(networks, ridge.label, left_out, constant, incomplete, unfinished),
    )


def _lines(models: Mapping[str, Mapping[int, list[Run]]], progress: Progress) -> list[Line]:
    reference: dict[int, tuple[str, pd.DataFrame]] = {}
    lines = []
    for label, seeds in progress(models.items(), "reading scores", len(models)):
        tables = []
        for runs in seeds.values():
            parts = [read_per_gene(run.folder) for run in runs]
            for run, part in zip(runs, parts, strict=True):
                keys, fold = part[[*KEYS, "n_spots", "measured_constant"]], run.record.fold.index
                other, shared = reference.setdefault(fold, (label, keys))
                if not shared.equals(keys):
                    raise ProtocolError(
                        f"{label} and {other} are not scored on the same spots and genes in fold {fold} ({run.folder}); "
                        "train the older of them again on the cohort as it is now"
                    )
            tables.append(pd.concat(parts, ignore_index=True))
        averaged = average_seeds(tables)
        scores = aggregate(averaged)
        replicates = None
        if len(scores.patients) < T_FROM and not np.isnan(scores.values["pearson"]):
            replicates = aggregate_replicates(averaged, _mean_replicates(list(seeds.values())))
        seed_r = np.array(
            [aggregate(table).values["pearson"] for table in tables] if len(tables) > 1 else [scores.values["pearson"]]
        )
        records = {seed: [run.record for run in runs] for seed, runs in seeds.items()}
        lines.append(Line(label, records, scores, seed_r, replicates))
    return lines


def _mean_replicates(seeds: Sequence[Sequence[Run]]) -> Float[Array, "N R"]:
    """Average replicates over seeds, which were resampled alike."""
    drawn = [[read_replicates(run.folder) for run in runs] for runs in seeds]
    if len({part.shape[1] for parts in drawn for part in parts}) > 1:
        raise DataError(
            f"{seeds[0][0].record.model_label}: its runs hold unlike numbers of bootstrap replicates ({seeds[0][0].folder} and "
            "others); delete their bootstrap.parquet, and stexpr evaluate makes them again"
        )
    total: Float[Array, "N R"] = np.vstack(drawn[0])
    for parts in drawn[1:]:
        total = total + np.vstack(parts)
    return total / np.float32(len(drawn))


def _rank_key(line: Line) -> tuple[bool, float, float, str]:
    r, r2 = float(line.scores.values["pearson"]), float(line.scores.values["r2"])
    return bool(np.isnan(r)), -float(np.nan_to_num(r)), -float(np.nan_to_num(r2)), line.label


def _row(rank: int, line: Line) -> dict[str, Any]:
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
        "genes_median_r_above_0": scores.genes_above_0,
        "genes_median_r_above_0.5": scores.genes_above_half,
        "genes_above_chance": str(scores.gene_test),
        "n_genes": int((scores.genes["n_patients"] > 0).sum()),
        "n_patients": sum(record.n.patients for record in seeds[0]),
        "n_sections": sum(record.n.sections for record in seeds[0]),
        "n_spots": sum(record.n.spots for record in seeds[0]),
        "epochs": None if not chosen else str(chosen[0]) if len(chosen) == 1 else f"{chosen[0]}–{chosen[-1]}",
        "minutes": minutes,
        "parameters": max(parameters) if parameters else None,
    }


def _genes(lines: Sequence[Line]) -> pd.DataFrame:
    """Rank genes by the leading model's mean r; one column of mean r per model."""
    table = pd.DataFrame({line.label: line.scores.genes["pearson"] for line in lines})
    patients = lines[0].scores.genes["n_patients"].reindex(table.index)
    table = table.assign(**{"": table.index}).sort_values([lines[0].label, ""], ascending=[False, True]).drop(columns="")
    ranked = table.reset_index(names="gene")
    ranked.insert(0, "rank", range(1, len(ranked) + 1))
    ranked.insert(2, "n_patients", patients.loc[ranked["gene"]].to_numpy())
    return ranked
