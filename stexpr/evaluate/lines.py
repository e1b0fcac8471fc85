"""The lines of a board: each model's scores over all folds, its seeds averaged first."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float

from stexpr.errors import DataError, ProtocolError
from stexpr.evaluate.aggregate import KEYS, Aggregate, aggregate, aggregate_replicates, average_seeds
from stexpr.evaluate.decomposition import Decomposition, decompose, mean_decomposition
from stexpr.evaluate.intervals import T_FROM, Interval, patient_interval
from stexpr.evaluate.records import Record, Run
from stexpr.evaluate.score import read_per_gene, read_replicates
from stexpr.types import Progress, silent

__all__ = ["Line", "read_lines"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Line:
    """One model of the board: its records by seed and fold, and its scores."""

    label: str
    records: dict[int, list[Record]]  # seed -> one record per fold, in the order of folds
    scores: Aggregate
    seed_r: Float[Array, "seeds"]
    pooled: Decomposition
    replicates: Float[Array, "R"] | None

    @property
    def is_reference(self) -> bool:
        """Tell whether it saw the test data, and is shown without a rank."""
        return self.first.kind == "reference"

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


def read_lines(models: Mapping[str, Mapping[int, list[Run]]], progress: Progress = silent) -> list[Line]:
    """Read the scores of models.

    Args:
        models: By label and seed, the runs of all folds, as `complete_models` sorts them.
        progress: Shows the models read.

    Returns:
        One line per model, in the order given.

    Raises:
        DataError: A run lacks a file, or holds another number of replicates.
        ProtocolError: Two models are not scored on the same spots and genes.
    """
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
        pooled = [decompose(table) for table in tables]
        records = {seed: [run.record for run in runs] for seed, runs in seeds.items()}
        lines.append(Line(label, records, scores, seed_r, mean_decomposition(pooled), replicates))
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
