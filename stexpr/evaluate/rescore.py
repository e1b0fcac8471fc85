"""The same predictions under other protocols: how much of a published number is the protocol.

Only the part of a protocol that scores is applied: which spots and genes count, what they are compared with, what is pooled.
The networks stay as they were trained, so a protocol that also trains on test data (by its genes or its epochs) would
inflate further.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float

from stexpr.config import ProtocolConfig, load_protocol
from stexpr.data.geometry import neighborhood_mean
from stexpr.errors import DataError, ProtocolError
from stexpr.evaluate.aggregate import METRICS, Aggregate, aggregate
from stexpr.evaluate.metrics import constant_per_gene, pearson_per_gene, spearman_per_gene
from stexpr.evaluate.records import PREDICTIONS, Run, read_predictions
from stexpr.evaluate.score import POOLED
from stexpr.panel import ExpressionTransform, fit_panel
from stexpr.types import COUNTS

__all__ = ["FoldPredictions", "fold_predictions", "rescore", "scoring_protocol"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class FoldPredictions:
    """What a model predicted for the test spots of one fold, and what was counted there.

    Attributes:
        genes: Names, in the order of the columns.
        predicted: Model output.
        counts: Raw counts.
        spots: One row per spot with `section`, `patient`, `x_um`, `y_um` and `library`.
        n_genes: Genes of the cohort.
    """

    genes: tuple[str, ...]
    predicted: Float[Array, "S G"]
    counts: sp.csr_matrix
    spots: pd.DataFrame
    n_genes: int


def scoring_protocol(name: str | Path) -> ProtocolConfig:
    """Return a preset whose split is left open, since the folds are those of the runs.

    Raises:
        ConfigError: There is no such protocol.
    """
    return load_protocol(
        name, {"name": str(name), "split": {"rule": "leave_one_patient_out", "test_patients": (), "file": None}}
    )


def fold_predictions(run: Run) -> FoldPredictions:
    """Read the predictions of a run.

    Raises:
        DataError: They are missing, or of a version that did not keep counts.
    """
    adata = read_predictions(run.folder)
    if COUNTS not in adata.layers:
        raise DataError(f"{run.folder / PREDICTIONS} holds no counts, which other protocols need; train the fold again")
    spots = adata.obs[["section", "patient", "x_um", "y_um", "library"]].reset_index(drop=True)
    return FoldPredictions(
        tuple(map(str, adata.var_names)),
        np.asarray(adata.X),
        sp.csr_matrix(adata.layers[COUNTS]),
        spots.astype({"section": str, "patient": str}),
        int(json.loads(adata.uns["stexpr"])["n_genes"]),
    )


def rescore(folds: Sequence[FoldPredictions], protocol: ProtocolConfig) -> tuple[Aggregate, int]:
    """Score a model's folds as a protocol does.

    Genes that a protocol chooses on the whole cohort are chosen among those that every fold predicts, on the test spots of
    all folds together; genes chosen in training are those of each fold.

    Args:
        folds: One model's test spots, fold by fold.
        protocol: Of which the filter of spots, the panel, the unit and the pooling apply.

    Returns:
        Correlations aggregated as on any board, and the number of spots scored.

    Raises:
        ProtocolError: No gene or no section is left.
    """
    kept = [fold for fold in (_scored_spots(fold, protocol.min_counts) for fold in folds) if len(fold.spots)]
    if not kept:
        raise ProtocolError(f"no section has two spots of at least {protocol.min_counts:,} counts")
    chosen = _panel(kept, protocol) if protocol.panel.scope == "cohort" else None
    tables = [table for fold in kept for table in _tables(_with_genes(fold, chosen), protocol)]
    return aggregate(pd.concat(tables, ignore_index=True)), sum(len(fold.spots) for fold in kept)


def _scored_spots(fold: FoldPredictions, least: int) -> FoldPredictions:
    """Keep the spots of enough counts, in sections that keep two of them."""
    deep = fold.spots["library"] >= least
    rows = np.flatnonzero(deep & (deep.groupby(fold.spots["section"]).transform("sum") > 1))
    spots = fold.spots.iloc[rows].reset_index(drop=True)
    return FoldPredictions(fold.genes, fold.predicted[rows], fold.counts[rows], spots, fold.n_genes)


def _with_genes(fold: FoldPredictions, genes: Sequence[str] | None) -> FoldPredictions:
    if genes is None:
        return fold
    columns = [fold.genes.index(gene) for gene in genes]
    return FoldPredictions(tuple(genes), fold.predicted[:, columns], fold.counts[:, columns], fold.spots, fold.n_genes)


def _panel(folds: Sequence[FoldPredictions], protocol: ProtocolConfig) -> tuple[str, ...]:
    shared = sorted(set.intersection(*(set(fold.genes) for fold in folds)))
    rule = protocol.panel
    if rule.rule == "list":
        shared = [gene for gene in rule.genes if gene in shared]
    if not shared:
        raise ProtocolError("no gene of its panel is predicted in every fold")
    counts = sp.vstack([_with_genes(fold, shared).counts for fold in folds], format="csr")
    passing = int((np.asarray((counts > 0).mean(axis=0)).ravel() >= rule.min_detection).sum())
    if rule.rule == "list":
        return tuple(shared)
    if not passing:
        raise ProtocolError(f"no predicted gene has a count in {rule.min_detection:.0%} of the spots")
    # A panel of its full size may not be among the predicted genes; what there is of it is scored, and counted.
    n_main = min(rule.n_main, passing)
    return fit_panel(counts, shared, rule=rule.rule, n_main=n_main, min_detection=rule.min_detection, scope="cohort").main


def _tables(fold: FoldPredictions, protocol: ProtocolConfig) -> Iterator[pd.DataFrame]:
    measured = _expression(fold, protocol)
    groups: Mapping[Any, Any] = fold.spots.groupby("section", sort=False).indices
    if protocol.pooling == "pooled":
        groups = {POOLED: np.arange(len(fold.spots))}
    for section, rows in groups.items():
        predicted, truth = fold.predicted[rows], measured[rows]
        yield pd.DataFrame(
            {
                "patient": " + ".join(dict.fromkeys(fold.spots["patient"].iloc[rows])),
                "section": section,
                "gene": list(fold.genes),
                **dict.fromkeys(METRICS, np.nan),
                "pearson": pearson_per_gene(predicted, truth),
                "spearman": spearman_per_gene(predicted, truth),
                "measured_constant": constant_per_gene(truth),
                "predicted_constant": constant_per_gene(predicted),
            }
        )


def _expression(fold: FoldPredictions, protocol: ProtocolConfig) -> Float[Array, "S G"]:
    unit, library = protocol.expression, fold.spots["library"].to_numpy(dtype=np.float64)
    counts: Array = fold.counts.toarray().astype(np.float64)
    if unit.smoothing == "neighbors":
        mean = neighborhood_mean(fold.spots)
        counts, library = np.asarray(mean @ counts), np.asarray(mean @ library)
    if unit.library == "panel":
        library = np.maximum(counts.sum(axis=1), 1)
    expression: Array = ExpressionTransform(unit.kind, unit.target_sum, n_genes=fold.n_genes)(counts, library)
    return expression
