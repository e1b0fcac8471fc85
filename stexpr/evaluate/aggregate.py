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
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float, Float64

from stexpr.errors import MetricError
from stexpr.evaluate.testing import ALPHA, GeneTest, benjamini_hochberg, binomial_p, combine_p, flips_for, gene_test

__all__ = ["DIAGNOSTICS", "METRICS", "MOMENTS", "Aggregate", "aggregate", "aggregate_replicates", "average_seeds"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

METRICS: Final = ["pearson", "spearman", "rmse", "mae", "r2"]
CEILINGS: Final = ["ceiling", "ceiling_low", "ceiling_high", "ceiling_depth_blind"]
MAPS: Final = ["ssim", "moran_measured", "moran_predicted", "bivariate_moran", "domain_ari", "domain_nmi"]
DIAGNOSTICS: Final = [*CEILINGS, "slope", "r_within_depth", *MAPS]
AGREEMENT: Final = ["pearson", "spearman", "r_within_depth", "ssim", "bivariate_moran"]
"""What has no value for a constant prediction, and enters means as 0 there."""
MOMENTS: Final = ["predicted_mean", "predicted_sd", "measured_mean", "measured_sd"]
SPATIAL_P: Final = "spatial_p"
KEYS: Final = ["patient", "section", "gene"]
FLAGS: Final = ["measured_constant", "predicted_constant"]
UNPREDICTABLE: Final = 0.1
"""A ceiling below this leaves a gene nothing that a prediction could agree with."""


@dataclass(frozen=True)
class Aggregate:
    """The scores of one model over the patients given.

    Attributes:
        values: The five metrics, then the diagnostics, NaN where undefined.
        patients: The same for each patient (mean over that patient's genes), by patient.
        genes: By gene: the same, `n_patients`, `median_r` over patients, `positive_patients` (r > 0) and `spatial_p`, the
            test against equally smooth maps combined over sections and patients.
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
        test = gene_test(self._tested["positive_patients"].to_numpy(), self._tested["n_patients"].to_numpy())
        return replace(test, count=None) if np.isnan(self.values["pearson"]) else test

    @property
    def gene_test_fdr(self) -> GeneTest:
        """The same test at a false discovery rate of 5 % instead (Benjamini and Hochberg), which needs 5 patients."""
        positive, n = (self._tested[name].to_numpy() for name in ("positive_patients", "n_patients"))
        most, needed = int(n.max(initial=0)), flips_for(ALPHA)
        if most < needed or np.isnan(self.values["pearson"]):
            return GeneTest(None, most, needed)
        return GeneTest(int(benjamini_hochberg(binomial_p(positive, n))[1].sum()), most, needed)

    @property
    def genes_spatial(self) -> int | None:
        """Genes that agree better than equally smooth maps would by chance, at a false discovery rate of 5 %.

        None where no gene has such a test: pooled sections, or constant predictions.
        """
        p = self.genes["spatial_p"].to_numpy()
        return None if np.isnan(p).all() else int(benjamini_hochberg(p)[1].sum())

    @property
    def r_over_ceiling(self) -> float:
        """Mean r over mean ceiling, of the genes that have a ceiling; NaN where none has, or r is undefined."""
        known = self.genes[self.genes["ceiling"].notna() & self.genes["pearson"].notna()]
        limit = float(known["ceiling"].mean()) if len(known) else 0.0
        return float(known["pearson"].mean()) / limit if limit > 0 else np.nan

    @property
    def unpredictable(self) -> int:
        """Genes whose ceiling is below .1: counting noise alone hides them."""
        return int((self.genes["ceiling"] < UNPREDICTABLE).sum())

    @property
    def _tested(self) -> pd.DataFrame:
        return self.genes[self.genes["n_patients"] > 0]

    def _above(self, threshold: float) -> int | None:
        if np.isnan(self.values["pearson"]):
            return None
        return int((self.genes["median_r"] > threshold).sum())


def aggregate(per_gene: pd.DataFrame) -> Aggregate:
    """Aggregate one model's scores.

    Args:
        per_gene: One row per (patient, section, gene), as `score` makes and `average_seeds` averages; diagnostics that a
            table of an older version lacks are undefined.

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
    columns = [*METRICS, *DIAGNOSTICS]
    values = per_gene.reindex(columns=columns).to_numpy(dtype=np.float64, copy=True)
    values[np.ix_(usable & constant, _is_agreement(per_gene))] = 0.0
    values[~usable] = np.nan
    index = _Index.of(per_gene)
    cells = index.cells(values)  # (P, G, metrics)
    by_gene, by_patient = _mean(cells, 0), _mean(cells, 1)
    overall = _mean(by_gene, 0)
    correlation = np.isin(columns, AGREEMENT)
    # The same means over "is this r defined?": where none is, the mean is undefined rather than 0.
    defined = np.nan_to_num(index.cells(np.where(usable, ~constant, np.nan)[:, None])[:, :, 0])
    by_gene[np.ix_(~defined.any(axis=0), correlation)] = np.nan
    by_patient[np.ix_(~defined.any(axis=1), correlation)] = np.nan
    if not defined.any():
        overall[correlation] = np.nan
    r = cells[:, :, columns.index("pearson")]
    genes = pd.DataFrame(by_gene, index=pd.Index(index.genes, name="gene"), columns=columns)
    genes["n_patients"] = (~np.isnan(r)).sum(axis=0)
    genes["median_r"] = np.where(defined.any(axis=0), _median(r), np.nan)
    genes["positive_patients"] = (np.nan_to_num(r) > 0).sum(axis=0)
    genes["spatial_p"] = _spatial_p(per_gene[usable]).reindex(genes.index)
    return Aggregate(
        values=pd.Series(overall, index=columns),
        patients=pd.DataFrame(by_patient, index=pd.Index(index.patients, name="patient"), columns=columns),
        genes=genes,
        patient_gene=r,
        left_out=per_gene.loc[~usable, KEYS].reset_index(drop=True),
        constant_predictions=int((usable & constant).sum()),
    )


def _is_agreement(per_gene: pd.DataFrame) -> Bool[Array, "K"]:
    """Tell which of a table's columns a constant prediction enters as 0; a column that is not there stays undefined."""
    return np.array([name in AGREEMENT and name in per_gene for name in (*METRICS, *DIAGNOSTICS)])


def _spatial_p(per_gene: pd.DataFrame) -> pd.Series:
    if SPATIAL_P not in per_gene or per_gene[SPATIAL_P].isna().all():
        return pd.Series(dtype=float)
    wide = per_gene.pivot(index=["patient", "section"], columns="gene", values=SPATIAL_P)
    return pd.Series(combine_p(wide.to_numpy(dtype=np.float64), wide.index.get_level_values("patient").tolist()), wide.columns)


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
    for name in [name for name in (*METRICS, *DIAGNOSTICS) if name in first]:
        values = np.stack([table[name].to_numpy(dtype=np.float64) for table in tables])
        if name in AGREEMENT and not np.isnan(values).all():
            values[constant] = 0.0
        averaged[name] = values.mean(axis=0)
    if SPATIAL_P in first:
        averaged[SPATIAL_P] = _of_one_patient(tables)
    every = np.asarray(constant.all(axis=0))
    averaged["predicted_constant"] = every
    undefined = every | first["measured_constant"].to_numpy(dtype=bool)
    for name in [name for name in AGREEMENT if name in first]:
        averaged[name] = averaged[name].mask(undefined)
    return averaged


def _of_one_patient(tables: Sequence[pd.DataFrame]) -> Float64[Array, "N"]:
    """Combine the p-values of several models of the same spots, which are no more independent than one patient's sections."""
    p = np.stack([table[SPATIAL_P].to_numpy(dtype=np.float64) for table in tables])
    return combine_p(p, ["one"] * len(p))


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
