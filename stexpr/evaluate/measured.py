"""What was measured of a model's genes in an AnnData of any origin: raw counts, found by name, with the whole library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float32, Float64, Int64

from stexpr.data.provenance import noted
from stexpr.errors import DataError, GeneError, nearest
from stexpr.panel import ExpressionTransform
from stexpr.types import COUNTS

__all__ = ["Measured", "measured_counts", "measured_of", "unit_of"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
_EXAMPLES = 5


@dataclass(frozen=True)
class Measured:
    """Counts of the genes that a model predicts.

    Attributes:
        genes: Those that were measured, in the order of the model.
        columns: Of each, its place in `var`.
        absent: Genes of the model that were not measured.
        counts: Raw counts of `genes`.
        library: Counts of each spot over all genes of the AnnData.
    """

    genes: tuple[str, ...]
    columns: Int64[Array, "G"]
    absent: tuple[str, ...]
    counts: sp.csr_matrix
    library: Float64[Array, "S"]

    def expression(self, transform: ExpressionTransform) -> Float32[Array, "S G"]:
        """Return what was measured in a model's unit; NaN for a spot without a count."""
        some = np.where(self.library > 0, self.library, np.nan).astype(np.float32)
        values = transform(self.counts.toarray().astype(np.float32), some)
        return np.where(np.isnan(some)[:, None], np.nan, values).astype(np.float32)


def measured_counts(adata: Any, genes: Sequence[str], *, layer: str | None = None, gene_symbols: str | None = None) -> Measured:
    """Find the raw counts of some genes.

    Genes are matched by name; the version suffix of an Ensembl id (`.12`) is not part of it.

    Args:
        adata: With raw counts.
        genes: Names, as the model has them.
        layer: Where the counts are; by default `layers["counts"]` if there is one, else `X`.
        gene_symbols: Column of `var` with the names to match; `var_names` by default.

    Raises:
        DataError: There is no such layer or column, or it does not hold raw counts.
        GeneError: No gene is found, or one stands more than once.
    """
    counts = _counts(adata, layer)
    if gene_symbols is not None and gene_symbols not in adata.var:
        raise DataError(
            f"gene_symbols = {gene_symbols!r} is no column of var; {nearest(gene_symbols, map(str, adata.var.columns))}"
        )
    named = adata.var_names if gene_symbols is None else adata.var[gene_symbols]
    what = "var_names" if gene_symbols is None else f"var[{gene_symbols!r}]"
    place: dict[str, list[int]] = {}
    for i, name in enumerate(named):
        place.setdefault(_plain(name), []).append(i)
    found = tuple(gene for gene in genes if _plain(gene) in place)
    if not found:
        raise GeneError(_none_found(adata, genes, what))
    if twice := [gene for gene in found if len(place[_plain(gene)]) > 1]:
        raise GeneError(
            f"{len(twice)} genes stand more than once in {what}: {', '.join(twice[:_EXAMPLES])}; sum or rename them, or take "
            "another column with gene_symbols="
        )
    columns = np.array([place[_plain(gene)][0] for gene in found], dtype=np.int64)
    kept = set(found)
    return Measured(
        genes=found,
        columns=columns,
        absent=tuple(gene for gene in genes if gene not in kept),
        counts=counts[:, columns],
        library=np.asarray(counts.sum(axis=1), dtype=np.float64).ravel(),
    )


def unit_of(adata: Any, key: str) -> ExpressionTransform:
    """Return the unit of a prediction in `obsm`, as `uns["stexpr"]` says it.

    Raises:
        DataError: It does not.
    """
    said = noted(adata, key).get("expression")
    if said is None:
        raise DataError(f'the unit of obsm[{key!r}] is unknown: uns["stexpr"] does not say how it was made')
    return ExpressionTransform(**said)


def measured_of(
    adata: Any, key: str, gene: str, *, layer: str | None = None, gene_symbols: str | None = None
) -> Float64[Array, "S"] | None:
    """Return what was measured of a gene, in the unit of the prediction in `obsm[key]`; None if it was not measured.

    Raises:
        DataError: There are no raw counts, or the unit is unknown.
        GeneError: The gene stands more than once, or none of the prediction's genes was measured.
    """
    measured = measured_counts(adata, list(adata.obsm[key].columns), layer=layer, gene_symbols=gene_symbols)
    if gene not in measured.genes:
        return None
    expression: Array = measured.expression(unit_of(adata, key))[:, measured.genes.index(gene)].astype(np.float64)
    return expression


def _counts(adata: Any, layer: str | None) -> sp.csr_matrix:
    if layer is None and COUNTS in adata.layers:
        layer = COUNTS
    if layer is not None and layer not in adata.layers:
        raise DataError(f"the AnnData has no layer {layer!r}; {nearest(layer, adata.layers)}")
    where = "X" if layer is None else f"layers[{layer!r}]"
    values = adata.X if layer is None else adata.layers[layer]
    if values is None:
        raise DataError('the AnnData has neither X nor layers["counts"]; put the raw counts there')
    counts = sp.csr_matrix(values)
    wrong = ~np.isfinite(counts.data) | (counts.data < 0) | (counts.data != np.round(counts.data))
    if wrong.any():
        raise DataError(
            f"{where} holds {int(wrong.sum()):,} values that are not counts, such as {counts.data[np.argmax(wrong)]:.4g}; put "
            'the raw counts, before normalization, into layers["counts"], or name their layer with layer='
        )
    return counts


def _plain(name: Any) -> str:
    text = str(name)
    return text.partition(".")[0] if text.startswith("ENS") else text


def _none_found(adata: Any, genes: Sequence[str], what: str) -> str:
    """Say how the genes are named here and there, and which column of `var` would do."""
    wanted = {_plain(gene) for gene in genes}
    columns = {f"gene_symbols={name!r}": adata.var[name] for name in adata.var if adata.var[name].dtype.kind not in "biuf"}
    matches = {
        way: len(wanted & {_plain(name) for name in names})
        for way, names in {**columns, "gene_symbols=None": adata.var_names}.items()
    }
    best = max(matches, key=lambda way: matches[way])
    ours, theirs = (", ".join(map(repr, map(str, names[:2]))) for names in (genes, adata.var_names))
    way = f"{best} matches {matches[best]}" if matches[best] else "add a column of var with such names, and pass gene_symbols="
    return f"{what} holds none of the model's {len(genes)} genes, named like {ours}; var_names are like {theirs}; {way}"
