"""Pooled correlations taken apart into what lies within and between patients, from the moments of each section.

Published tables often pool all spots, which also rewards telling patients apart (by stain, scanner or depth). The moments in
the score tables give the pooled correlation of any set of sections without reading a prediction again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Float64, Int

from stexpr.evaluate.aggregate import MOMENTS

__all__ = ["PATIENTS_TO_CORRELATE", "Decomposition", "decompose", "mean_decomposition"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

PATIENTS_TO_CORRELATE = 3
"""Two means always correlate perfectly."""
ROUNDING = 1e-12


@dataclass(frozen=True)
class Decomposition:
    """Means over genes of three correlations; NaN where no gene has one.

    Attributes:
        pooled: Over all spots at once.
        within: After each patient's mean is taken from both sides.
        between: Of the patients' means, each weighted by its spots; NaN below three patients.
    """

    pooled: float
    within: float
    between: float


def decompose(per_gene: pd.DataFrame) -> Decomposition:
    """Correlate over all spots of all patients, and take that apart.

    Genes that some patient's fold does not hold, or that were constant in a section, are left out: their parts would not
    concern the same patients.

    Args:
        per_gene: One model's rows (patient, section, gene), as `gene_table` makes them.

    Returns:
        Means over genes; NaN for tables of older versions, which hold no moments.
    """
    if not set(MOMENTS) <= set(per_gene) or per_gene[MOMENTS].isna().all(axis=None):
        return Decomposition(np.nan, np.nan, np.nan)
    usable = per_gene.groupby("gene", sort=False)["measured_constant"].transform("any")
    complete = per_gene.groupby("gene", sort=False)["patient"].transform("nunique") == per_gene["patient"].nunique()
    rows = per_gene[complete & ~usable]
    if rows.empty:
        return Decomposition(np.nan, np.nan, np.nan)
    patient, patients = pd.factorize(rows["patient"])
    gene, genes = pd.factorize(rows["gene"])
    n = rows["n_spots"].to_numpy(dtype=np.float64)
    x, sx, y, sy = (rows[name].to_numpy(dtype=np.float64) for name in MOMENTS)
    own = np.nan_to_num(rows["pearson"].to_numpy(dtype=np.float64)) * sx * sy
    spread = np.stack([own, sx**2, sy**2])  # covariance and both variances around the section's mean
    cell = patient * len(genes) + gene
    inside = spread + _products(x - _means(x, n, cell)[cell], y - _means(y, n, cell)[cell])
    total = spread + _products(x - _means(x, n, gene)[gene], y - _means(y, n, gene)[gene])
    pooled, within = (_correlation(np.stack([_sums(part * n, gene) for part in parts])) for parts in (total, inside))
    between = np.full(len(genes), np.nan)
    if len(patients) >= PATIENTS_TO_CORRELATE:
        between = _correlation(np.stack([_sums((one - other) * n, gene) for one, other in zip(total, inside, strict=True)]))
    return Decomposition(*(float(np.nanmean(r)) if np.isfinite(r).any() else np.nan for r in (pooled, within, between)))


def mean_decomposition(parts: Sequence[Decomposition]) -> Decomposition:
    """Average over the seeds of one model; what is undefined for one is undefined."""
    return Decomposition(*(float(np.mean([getattr(part, field.name) for part in parts])) for field in fields(Decomposition)))


def _products(x: Float64[Array, "N"], y: Float64[Array, "N"]) -> Float64[Array, "3 N"]:
    return np.stack([x * y, x * x, y * y])


def _sums(values: Float64[Array, "N"], group: Int[Array, "N"]) -> Float64[Array, "K"]:
    return np.bincount(group, weights=values)


def _means(values: Float64[Array, "N"], n: Float64[Array, "N"], group: Int[Array, "N"]) -> Float64[Array, "K"]:
    # a group without rows has no mean, and none asks for it
    return _sums(values * n, group) / np.maximum(_sums(n, group), 1)


def _correlation(sums: Float[Array, "3 K"]) -> Float64[Array, "K"]:
    covariance, one, other = sums
    defined = (one > ROUNDING) & (other > ROUNDING)
    scale = np.sqrt(np.where(defined, one * other, 1))
    return np.where(defined, np.clip(covariance / scale, -1, 1), np.nan)
