"""From a predictions file to scores: per gene and section, with bootstrap replicates, and a summary for the record.

`stexpr train` and `stexpr evaluate` both call `score` on the same file, so the numbers of a record can be made again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float32

from stexpr.config.files import write_whole
from stexpr.errors import DataError, StexprError
from stexpr.evaluate.aggregate import (
    DIAGNOSTICS,
    FLAGS,
    KEYS,
    METRICS,
    MOMENTS,
    SPATIAL_P,
    Aggregate,
    aggregate,
    aggregate_replicates,
)
from stexpr.evaluate.gene_scores import Unit, gene_table, transform_of
from stexpr.evaluate.intervals import REPLICATES, block_replicates, patient_interval, spatial_blocks
from stexpr.evaluate.run_record import Counts, Value
from stexpr.evaluate.spatial_null import MOST_SPOTS
from stexpr.types import COUNTS, MEASURED

__all__ = ["BOOTSTRAP_FILE", "PER_GENE_FILE", "Scores", "read_per_gene", "read_replicates", "score"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Pooling: TypeAlias = Literal["within_section", "pooled"]

PER_GENE_FILE = "per_gene.parquet"
BOOTSTRAP_FILE = "bootstrap.parquet"
POOLED = "pooled"
OBS: Final = ["section", "patient", "x_um", "y_um"]


@dataclass(frozen=True)
class Scores:
    """What one run scored.

    Attributes:
        per_gene: One row per (patient, section, gene), as `gene_table` makes them.
        replicates: r of each of those rows on resampled spatial blocks, as it enters a ranking mean.
        aggregate: The same rows by gene, by patient and overall.
        summary: The metrics for the record, null where undefined, r with its interval.
        n: Patients, sections, spots and genes tested.
        notes: What was left out or is undefined, in words, for the record.
    """

    per_gene: pd.DataFrame
    replicates: Float32[Array, "N R"]
    aggregate: Aggregate
    summary: dict[str, Value]
    n: Counts
    notes: tuple[str, ...]

    def write(self, folder: Path) -> None:
        """Write `per_gene.parquet` and `bootstrap.parquet` into a run folder.

        The replicates are one list of float32 per row, about 1 MB per 250 genes and section.

        Raises:
            DataError: The folder cannot be written.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        write_whole(folder / PER_GENE_FILE, lambda path: self.per_gene.to_parquet(path, index=False))
        flat = pa.array(np.ascontiguousarray(self.replicates).ravel())
        rows = pa.FixedSizeListArray.from_arrays(flat, self.replicates.shape[1])
        # Replicates do not compress: plain pages are read at the speed of the disk.
        table = pa.table({"r": rows})
        write_whole(folder / BOOTSTRAP_FILE, lambda path: pq.write_table(table, path, compression="none", use_dictionary=False))


def score(predictions: Any, pooling: Pooling = "within_section", *, n_replicates: int = REPLICATES, seed: int = 0) -> Scores:
    """Score predicted against measured expression.

    Args:
        predictions: AnnData, spots x genes: `X` predicted, `layers["measured"]`, `obs` with section, patient, x_um and y_um,
            `var` with training_mean; for ceilings and depth also `obs["library"]`, `layers["counts"]` and its provenance.
        pooling: `within_section` correlates inside each section; `pooled` over all spots at once, which also rewards
            differences between sections and patients (its `section` column says "pooled", its patient joins the names).
        n_replicates: Spatial-block bootstrap replicates of every gene's r.
        seed: Seed of the bootstrap.

    Returns:
        Scores in the order of the sections' first spots and of the genes.

    Raises:
        DataError: A column or layer is missing, a section has two patients, a value is not finite.
        MetricError: A section has fewer than two spots, or no gene varies.
    """
    spots = _spots(predictions)
    genes = [str(gene) for gene in predictions.var_names]
    transform = transform_of(predictions)
    tables, replicates = [], []
    for unit, strata in _units(predictions, spots, pooling):
        try:
            tables.append(gene_table(unit, genes, transform, one_section=pooling == "within_section"))
        except StexprError as err:
            err.add_note(f"while scoring section {unit.section} of patient {unit.patient}")
            raise
        resample = {"n": n_replicates, "seed": seed}
        replicates.append(block_replicates(unit.predicted, unit.measured, unit.blocks, strata, **resample))
    per_gene, drawn = pd.concat(tables, ignore_index=True), np.vstack(replicates)
    scores = aggregate(per_gene)
    of = {"patients": spots["patient"].nunique(), "sections": spots["section"].nunique(), "spots": len(spots)}
    counts = Counts(**of, genes=len(genes))
    return Scores(per_gene, drawn, scores, _summary(scores, per_gene, drawn), counts, _notes(scores, per_gene))


def read_per_gene(folder: Path) -> pd.DataFrame:
    """Read the scores a run wrote.

    Returns:
        A row per (patient, section, gene) as in `Scores.per_gene`; files of older versions lack columns beyond the five
        metrics, which count as undefined.

    Raises:
        DataError: The file is missing, unreadable or lacks a column every version wrote.
    """
    columns = [*KEYS, *METRICS, "n_spots", *FLAGS]
    table: pd.DataFrame = _read(folder / PER_GENE_FILE, columns, [*DIAGNOSTICS, *MOMENTS, SPATIAL_P]).to_pandas()
    return table


def read_replicates(folder: Path) -> Float32[Array, "N R"]:
    """Read the bootstrap replicates a run wrote, rows as in its `per_gene.parquet`.

    Raises:
        DataError: The file is missing or unreadable.
    """
    column = _read(folder / BOOTSTRAP_FILE, ["r"]).column("r").combine_chunks()
    replicates: Float32[Array, "N R"] = column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return replicates


def _read(path: Path, columns: list[str], optional: Sequence[str] = ()) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read(columns=[*columns, *optional])  # leaves out in silence what the file does not have
        if missing := [name for name in columns if name not in table.column_names]:
            raise KeyError(f"no column {', '.join(missing)}")
        return table
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing though its run has a record; stexpr evaluate {path.parent} makes it again"
        ) from None
    except (OSError, pa.ArrowException, KeyError) as err:
        raise DataError(f"{path} is not readable ({err}); delete it, and stexpr evaluate {path.parent} makes it again") from err


def _spots(predictions: Any) -> pd.DataFrame:
    """Return who and where the spots are, after a look at everything a predictions file has to hold."""
    missing = [f"obs[{name!r}]" for name in OBS if name not in predictions.obs]
    missing += ["var['training_mean']"] * ("training_mean" not in predictions.var)
    missing += [f"layers[{MEASURED!r}]"] * (MEASURED not in predictions.layers)
    if missing:
        raise DataError(f"not a predictions file of stexpr: it lacks {', '.join(missing)}")
    spots: pd.DataFrame = predictions.obs[OBS].reset_index(drop=True).astype({"section": str, "patient": str})
    shared = spots.groupby("section")["patient"].nunique()
    if (shared > 1).any():
        raise DataError(f"section {shared.index[shared > 1][0]!r} belongs to {shared.max()} patients; it can have one")
    if not np.isfinite(spots[["x_um", "y_um"]].to_numpy(dtype=float)).all():
        raise DataError("the predictions file holds spots without a finite x_um and y_um")
    for name, values in (("X", predictions.X), (f"layers[{MEASURED!r}]", predictions.layers[MEASURED])):
        if sp.issparse(values) or values.dtype.kind != "f" or values.ndim != 2:
            raise DataError(f"{name} of the predictions file is not a dense array of floats, but {values.dtype}")
    return spots


def _units(predictions: Any, spots: pd.DataFrame, pooling: Pooling) -> Iterable[tuple[Unit, list[str]]]:
    """Yield what is correlated together, and the section of each of its spots."""
    block = np.zeros(len(spots), dtype=np.int64)
    for rows in spots.groupby("section", sort=False).indices.values():
        block[rows] = spatial_blocks(*(spots[axis].to_numpy(dtype=np.float64)[rows] for axis in ("x_um", "y_um")))
    measured, mean = np.asarray(predictions.layers[MEASURED]), predictions.var["training_mean"].to_numpy(dtype=np.float64)
    counts = sp.csr_matrix(predictions.layers[COUNTS]) if COUNTS in predictions.layers else None
    library = predictions.obs["library"].to_numpy(dtype=np.float64) if "library" in predictions.obs else None
    sections = {name: np.asarray(rows) for name, rows in spots.groupby("section", sort=False).indices.items()}
    for section, rows in {POOLED: np.arange(len(spots))}.items() if pooling == "pooled" else sections.items():
        strata = spots["section"].iloc[rows].tolist()
        unit = Unit(
            patient=" + ".join(dict.fromkeys(spots["patient"].iloc[rows])),
            section=str(section),
            predicted=np.asarray(predictions.X)[rows],
            measured=measured[rows],
            training_mean=mean,
            x_um=spots["x_um"].to_numpy(dtype=np.float64)[rows],
            y_um=spots["y_um"].to_numpy(dtype=np.float64)[rows],
            blocks=block[rows],
            library=None if library is None else library[rows],
            counts=None if counts is None else counts[rows],
        )
        yield unit, strata


def _summary(scores: Aggregate, per_gene: pd.DataFrame, replicates: Float32[Array, "N R"]) -> dict[str, Value]:
    summary = {metric: Value(value=_plain(scores.values[metric])) for metric in METRICS}
    if summary["pearson"].value is not None:
        drawn = aggregate_replicates(per_gene, replicates)
        interval = patient_interval(scores.patient_gene, drawn)
        if np.isfinite(interval.low):
            bounds = {"low": interval.low, "high": interval.high, "interval": interval.kind}
            summary["pearson"] = Value(value=summary["pearson"].value, **bounds)
    return summary


def _notes(scores: Aggregate, per_gene: pd.DataFrame) -> tuple[str, ...]:
    notes = []
    if len(scores.left_out):
        names = [f"{row.gene} ({row.section})" for row in scores.left_out.itertuples()]
        notes.append(f"measured values constant, left out: {', '.join(names)}")
    if scores.constant_predictions:
        of = len(per_gene) - len(scores.left_out)
        undefined = "; r is undefined" if np.isnan(scores.values["pearson"]) else ", entering mean r as 0"
        notes.append(f"predicted values constant: {scores.constant_predictions} of {of} gene x section{undefined}")
    if large := sorted(set(per_gene.loc[per_gene["n_spots"] > MOST_SPOTS, "section"]) - {POOLED}):
        notes.append(f"more than {MOST_SPOTS:,} spots, without the spatial null: {', '.join(large)}")
    return tuple(notes)


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
