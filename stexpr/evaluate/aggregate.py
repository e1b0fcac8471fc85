"""From one value per gene and section to one value per gene, patient and model.

The order is fixed: gene x section, mean over a patient's sections, mean over patients, mean over genes. Three rules keep
models comparable:

- Measured constant: a gene whose measured values are constant in a section has no correlation there for any model; that
  gene and section is left out for every model and every metric alike, and listed.
- Predicted constant: the model's own doing. The correlation stays NaN in the table, enters means as 0, and is counted.
- A mean all of whose entries are of the second kind is undefined, not 0: the training mean has no r.

Folds may hold unlike gene panels (chosen on unlike training spots): a gene's mean runs over the patients whose fold holds
it, `n_patients` says how many, and every model of a board has the same panel in a fold, so none gains by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float, Float64

from stexpr.errors import MetricError

__all__ = ["CORRELATIONS", "METRICS", "Aggregate", "GeneTest", "aggregate", "aggregate_replicates", "average_seeds", "holm"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

METRICS: Final = ["pearson", "spearman", "rmse", "mae", "r2"]
CORRELATIONS: Final = ["pearson", "spearman"]
KEYS: Final = ["patient", "section", "gene"]
FLAGS: Final = ["measured_constant", "predicted_constant"]
ALPHA = 0.1
"""Family-wise error rate of ST-Net's count (He et al. 2020)."""


@dataclass(frozen=True)
class GeneTest:
    """How many genes are predicted better than chance over patients (ST-Net's count).

    `count` is None where the test cannot reach its level with any data: too few patients, or no defined correlation.
    """

    count: int | None
    n_patients: int
    needed: int

    def __str__(self) -> str:
        if self.count is not None:
            return str(self.count)
        if self.n_patients < self.needed:
            return f"not testable: n = {self.n_patients}, needs ≥ {self.needed}"
        return "–"


@dataclass(frozen=True)
class Aggregate:
    """The scores of one model over the patients given.

    Attributes:
        values: The five metrics, NaN where undefined, in the order of `METRICS`.
        patients: Metrics of each patient (mean over that patient's genes), by patient.
        genes: By gene: metrics, `n_patients`, `median_r` over patients and `positive_patients` (r > 0).
        patient_gene: Pearson r as it enters means, patients x genes, NaN where left out or not in the panel.
        left_out: The (patient, section, gene) whose measured values are constant.
        constant_predictions: Number of (patient, section, gene) that entered the mean r as 0.
    """

    values: pd.Series
    patients: pd.DataFrame
    genes: pd.DataFrame
    patient_gene: Float64[Array, "P G"]
    left_out: pd.DataFrame
    constant_predictions: int

    @property
    def genes_above_0(self) -> int | None:
        """Genes whose median r over patients is above 0 (BrST-Net's count; no test, about half of all by chance)."""
        return self._above(0.0)

    @property
    def genes_above_half(self) -> int | None:
        """Genes whose median r over patients is above .5 (BrST-Net's count)."""
        return self._above(0.5)

    @property
    def gene_test(self) -> GeneTest:
        """Genes with more patients of r > 0 than chance: one-sided binomial, Holm over the panel (ST-Net's count)."""
        from scipy.stats import binom

        tested = self.genes[self.genes["n_patients"] > 0]
        n = int(tested["n_patients"].max()) if len(tested) else 0
        needed = max(1, int(np.ceil(np.log2(max(len(tested), 1) / ALPHA) - 1e-9)))
        if n < needed or np.isnan(self.values["pearson"]):
            return GeneTest(None, n, needed)
        p = binom.sf(tested["positive_patients"].to_numpy() - 1, tested["n_patients"].to_numpy(), 0.5)
        return GeneTest(int(holm(np.asarray(p)).sum()), n, needed)

    def _above(self, threshold: float) -> int | None:
        if np.isnan(self.values["pearson"]):
            return None
        return int((self.genes["median_r"] > threshold).sum())


def aggregate(per_gene: pd.DataFrame) -> Aggregate:
    """Aggregate one model's scores.

    Args:
        per_gene: One row per (patient, section, gene), as `score` makes and `average_seeds` averages: the five metrics,
            `measured_constant`, `predicted_constant`.

    Returns:
        Values by model, patient and gene; patients in order of appearance, genes likewise.

    Raises:
        MetricError: No row, a key twice, or every gene left out.
    """
    if per_gene.duplicated(KEYS).any():
        first = per_gene.loc[per_gene.duplicated(KEYS), KEYS].iloc[0]
        raise MetricError(f"gene {first['gene']!r} of section {first['section']!r} is scored twice")
    usable = ~per_gene["measured_constant"].to_numpy(dtype=bool)
    if not usable.any():
        raise MetricError(f"none of {len(per_gene)} genes has varying measured values: there is nothing to score")
    constant = per_gene["predicted_constant"].to_numpy(dtype=bool)
    values = per_gene[METRICS].to_numpy(dtype=np.float64, copy=True)
    correlation = np.array([metric in CORRELATIONS for metric in METRICS])
    values[np.ix_(usable & constant, correlation)] = 0.0
    values[~usable] = np.nan
    index = _Index.of(per_gene)
    cells = index.cells(values)  # (P, G, metrics)
    by_gene, by_patient = _mean(cells, 0), _mean(cells, 1)
    overall = _mean(by_gene, 0)
    # The same means over "is this r defined?": where none is, the mean is undefined rather than 0.
    defined = np.nan_to_num(index.cells(np.where(usable, ~constant, np.nan)[:, None])[:, :, 0])
    by_gene[np.ix_(~defined.any(axis=0), correlation)] = np.nan
    by_patient[np.ix_(~defined.any(axis=1), correlation)] = np.nan
    if not defined.any():
        overall[correlation] = np.nan
    r = cells[:, :, METRICS.index("pearson")]
    genes = pd.DataFrame(by_gene, index=pd.Index(index.genes, name="gene"), columns=METRICS)
    genes["n_patients"] = (~np.isnan(r)).sum(axis=0)
    genes["median_r"] = np.where(defined.any(axis=0), _median(r), np.nan)
    genes["positive_patients"] = (np.nan_to_num(r) > 0).sum(axis=0)
    return Aggregate(
        values=pd.Series(overall, index=METRICS),
        patients=pd.DataFrame(by_patient, index=pd.Index(index.patients, name="patient"), columns=METRICS),
        genes=genes,
        patient_gene=r,
        left_out=per_gene.loc[~usable, KEYS].reset_index(drop=True),
        constant_predictions=int((usable & constant).sum()),
    )


def aggregate_replicates(per_gene: pd.DataFrame, replicates: Float[Array, "N R"]) -> Float64[Array, "R"]:
    """Combine replicates of r exactly as `aggregate` combines r.

    Args:
        per_gene: The rows the replicates belong to, in their order.
        replicates: r of each row on resampled spots, NaN where left out, 0 where the prediction is constant.

    Returns:
        The mean r of each replicate; NaN where it leaves nothing.
    """
    index = _Index.of(per_gene)
    usable = np.where(per_gene["measured_constant"].to_numpy(dtype=bool)[:, None], np.float32(np.nan), replicates)
    # A hundred at a time: patients x genes x replicates of a large panel would not fit into memory.
    parts = [_mean(_mean(index.cells(usable[:, start : start + 100]), 0), 0) for start in range(0, replicates.shape[1], 100)]
    return np.concatenate(parts)


def average_seeds(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Average the scores of one model's seeds, row by row.

    A seed whose prediction is constant for a gene counts as r = 0; a row is constant when it is in every seed.

    Args:
        tables: `per_gene` tables with the same rows in the same order.

    Returns:
        One table of the same rows.

    Raises:
        MetricError: The rows differ.
    """
    first = tables[0]
    for other in tables[1:]:
        if not first[[*KEYS, "measured_constant"]].equals(other[[*KEYS, "measured_constant"]]):
            raise MetricError("the seeds of one model are not scored on the same genes and sections")
    if len(tables) == 1:
        return first
    averaged = first.copy()
    constant: Bool[Array, "seeds N"] = np.stack([table["predicted_constant"].to_numpy(dtype=bool) for table in tables])
    for metric in METRICS:
        values = np.stack([table[metric].to_numpy(dtype=np.float64) for table in tables])
        if metric in CORRELATIONS:
            values[constant] = 0.0
        averaged[metric] = values.mean(axis=0)
    every = np.asarray(constant.all(axis=0))
    averaged["predicted_constant"] = every
    undefined = every | first["measured_constant"].to_numpy(dtype=bool)
    for metric in CORRELATIONS:
        averaged[metric] = averaged[metric].mask(undefined)
    return averaged


def holm(p: Float64[Array, "G"], alpha: float = ALPHA) -> Bool[Array, "G"]:
    """Reject hypotheses by Holm's step-down rule, which bounds the chance of any false rejection by `alpha`.

    Args:
        p: One p-value per gene.
        alpha: Family-wise error rate.

    Returns:
        True where rejected.

    Reference:
        Holm 1979, A simple sequentially rejective multiple test procedure.
    """
    order = np.argsort(p, kind="stable")
    passed = p[order] <= alpha / np.arange(len(p), 0, -1)
    rejected = np.zeros(len(p), dtype=bool)
    rejected[order] = np.logical_and.accumulate(passed)
    return rejected


@dataclass(frozen=True)
class _Index:
    """Which (patient, gene) cell each row belongs to."""

    patients: list[str]
    genes: list[str]
    membership: sp.csr_matrix  # (P * G, N)

    @classmethod
    def of(cls, per_gene: pd.DataFrame) -> "_Index":
        patient, patients = pd.factorize(per_gene["patient"])
        gene, genes = pd.factorize(per_gene["gene"])
        n = len(per_gene)
        cell = patient * len(genes) + gene
        membership = sp.csr_matrix((np.ones(n), (cell, np.arange(n))), shape=(len(patients) * len(genes), n))
        return cls([str(name) for name in patients], [str(name) for name in genes], membership)

    def cells(self, values: Float[Array, "N K"]) -> Float64[Array, "P G K"]:
        """Mean over a patient's sections, NaN where no section has a value."""
        missing = np.isnan(values)
        sums = self.membership @ np.where(missing, 0.0, values)
        counts = self.membership @ (~missing).astype(np.float64)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
        return means.reshape(len(self.patients), len(self.genes), values.shape[1])


def _mean(values: Float64[Array, "..."], axis: int) -> Float64[Array, "..."]:
    """Mean over the values that are defined; NaN where none is (numpy's nanmean would warn there)."""
    defined = ~np.isnan(values)
    counts = defined.sum(axis=axis)
    return np.asarray(np.where(counts > 0, np.where(defined, values, 0).sum(axis=axis) / np.maximum(counts, 1), np.nan))


def _median(r: Float64[Array, "P G"]) -> Float64[Array, "G"]:
    known = ~np.isnan(r).all(axis=0)
    return np.where(known, np.nanmedian(np.where(known, r, 0.0), axis=0), np.nan)
