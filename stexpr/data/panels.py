"""The gene panel of one fold, from the spots its protocol lets choose genes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64

from stexpr.config import PanelConfig
from stexpr.data.neighbors import lagged_product, neighbor_weights
from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.panel import ExpressionTransform, GenePanel, fit_panel

__all__ = ["fold_panel", "spatial_structure"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_GENES = 2048
"""Genes made dense at a time."""


def fold_panel(rule: PanelConfig, cohort: PreparedCohort, fold: Fold, *, n_auxiliary: int | None = None) -> GenePanel:
    """Choose the genes of a fold, from its training spots unless the rule's scope is the whole cohort.

    Args:
        rule: How genes are chosen.
        cohort: Where the counts are.
        fold: Names the training sections.
        n_auxiliary: Keep at most so many auxiliary genes, those of the highest mean count on training spots whatever the
            scope; None keeps all.

    Returns:
        The panel.

    Raises:
        GeneError: As `fit_panel`; the note names the fold.
        MetricError: The spots of a section have no neighborhood, for the rule `spatially_variable`.
    """
    sections = fold.train_sections if rule.scope == "training" else cohort.sections
    try:
        panel = fit_panel(
            sp.vstack([cohort.counts(section) for section in sections], format="csr"),
            cohort.genes,
            rule=rule.rule,
            n_main=rule.n_main,
            include=rule.include,
            listed=rule.genes,
            structure=spatial_structure(cohort, sections) if rule.rule == "spatially_variable" else None,
            min_detection=rule.min_detection,
            scope=rule.scope,
        )
        return panel if n_auxiliary is None else _most_counted(panel, n_auxiliary, cohort, fold)
    except Exception as err:
        err.add_note(f"while choosing the genes of fold {fold.index} of cohort {cohort.name}")
        raise


def _most_counted(panel: GenePanel, n: int, cohort: PreparedCohort, fold: Fold) -> GenePanel:
    """Keep the auxiliary genes of most counts in the training spots, in the order of the panel; ties go by name."""
    total: Array = np.sum([np.asarray(cohort.counts(section).sum(axis=0)).ravel() for section in fold.train_sections], axis=0)
    counted = dict(zip(cohort.genes, total.tolist(), strict=True))
    kept = set(sorted(panel.auxiliary, key=lambda gene: (-counted[gene], gene))[:n])
    return replace(panel, auxiliary=tuple(gene for gene in panel.auxiliary if gene in kept))


def spatial_structure(cohort: PreparedCohort, sections: Sequence[str]) -> Float64[Array, "G"]:
    """Compute Moran's I of every gene of the cohort, averaged over sections.

    Expression is log1p of library-size-normalized counts; neighbors are those of `neighbor_weights`. A section in which a
    gene is constant shows no structure of it and counts as 0, so that a gene seen in one section only does not come first.

    Args:
        cohort: The prepared cohort.
        sections: The sections to look at, each alone: neighbors never lie across sections.

    Returns:
        One value per gene, in the order of `cohort.genes`.

    Raises:
        MetricError: The spots of a section have no neighborhood.
    """
    mean: Array = np.mean([_section_structure(cohort, section) for section in sections], axis=0)
    return mean


def _section_structure(cohort: PreparedCohort, section: str) -> Float64[Array, "G"]:
    spots, counts = cohort.spots(section), cohort.counts(section).tocsc()
    try:
        weights = neighbor_weights(spots["x_um"].to_numpy(), spots["y_um"].to_numpy())
    except Exception as err:
        err.add_note(f"while looking for neighbors in section {section}")
        raise
    transform, library = ExpressionTransform(), spots["library"].to_numpy(dtype=np.float64)
    found = []
    for start in range(0, counts.shape[1], _GENES):
        expression = transform(counts[:, start : start + _GENES].toarray().astype(np.float64), library)
        centered = expression - expression.mean(axis=0)
        sd = centered.std(axis=0)
        varies = sd > 1e-12 * np.maximum(1.0, np.abs(expression).max(axis=0))
        standardized = np.where(varies, centered, 0.0) / np.where(varies, sd, 1.0)
        found.append(np.nan_to_num(lagged_product(standardized, standardized, weights)))
    return np.concatenate(found)
