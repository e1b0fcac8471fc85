"""Predicted against measured expression, in an AnnData that holds both."""

import warnings
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from stexpr.data.provenance import note, noted
from stexpr.data.tissue_image import spot_centers
from stexpr.errors import DataError, DataWarning, nearest
from stexpr.evaluate.ceiling import noise_ceiling
from stexpr.evaluate.intervals import spatial_blocks
from stexpr.evaluate.measured import Measured, measured_counts, unit_of
from stexpr.evaluate.metrics import pearson_per_gene
from stexpr.tl.apply import EXPRESSION, STEM
from stexpr.tl.target import rows_by, target, write

__all__ = ["score_prediction"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
_EXAMPLES = 5


def score_prediction(
    adata: Any,
    *,
    key: str = EXPRESSION,
    layer: str | None = None,
    gene_symbols: str | None = None,
    section_key: str | None = None,
    key_added: str = STEM,
    copy: bool = False,
) -> Any:
    """Correlate predicted with measured expression, gene by gene, and say how high a correlation the counts allow.

    Measured counts become expression in the model's unit, with the library of each spot over all genes of `adata`. Both numbers
    are computed within each section, where neither differences between patients nor between slides help, and the median over
    sections is taken.

    Args:
        adata: After `predict_expression`, with raw counts.
        key: Key of the prediction in `obsm`.
        layer: Where the raw counts are; by default `layers["counts"]` if there is one, else `X`.
        gene_symbols: Column of `var` with the model's gene names; `var_names` by default.
        section_key: Column of `obs` with the section of each spot; by default all spots are of one section.
        key_added: What the new columns of `var` begin with.
        copy: Return a copy and leave `adata` as it is.

    Returns:
        None, or the copy. Set are `var["<key_added>_r"]`, Pearson's r of each gene, and `var["<key_added>_ceiling"]`, the noise
        ceiling; NaN for genes that the model does not predict, and where a side is constant. `uns["stexpr"]` counts and names
        what was left out: genes of the model that `adata` lacks, spots without a prediction or a count, sections of fewer than
        two such spots.

    Raises:
        DataError: No prediction, no raw counts, or no such column; `adata` is backed.
        GeneError: None of the genes was measured, or one stands more than once.
    """
    own = target(adata, copy)
    table, how = _prediction(own, key)
    transform = unit_of(own, key)
    measured = measured_counts(own, list(table.columns), layer=layer, gene_symbols=gene_symbols)
    if measured.absent:
        warnings.warn(
            f"{len(measured.absent)} of {table.shape[1]} genes of the model were not measured here: "
            f"{', '.join(measured.absent[:_EXAMPLES])}{', …' if len(measured.absent) > _EXAMPLES else ''}",
            DataWarning,
            stacklevel=2,
        )
    predicted, expression = table[list(measured.genes)].to_numpy(dtype=np.float32), measured.expression(transform)
    centers = spot_centers(own)
    usable = np.isfinite(predicted).all(axis=1) & (measured.library > 0)
    values: dict[str, list[Any]] = {"r": [], "ceiling": []}
    spots = {}
    sections = {"all": np.arange(own.n_obs)} if section_key is None else rows_by(own, section_key, "section_key")
    for section, rows in sections.items():
        spots[section] = len(kept := rows[usable[rows]])
        if len(kept) >= 2:
            # the same bits as in the record of a run
            blocks = spatial_blocks(*centers[kept].T)
            ceiling = noise_ceiling(measured.counts[kept], measured.library[kept], transform, blocks)
            values["r"].append(pearson_per_gene(predicted[kept], expression[kept]))
            values["ceiling"].append(ceiling.value)
    if not values["r"]:
        raise DataError(f"no section has two spots with a prediction and a count; {int(usable.sum())} of all spots have both")
    columns = {}
    for name, found in values.items():
        column = np.full(own.n_vars, np.nan)
        column[measured.columns] = pd.DataFrame(found).median().to_numpy()  # NaN only where every section is
        columns[f"{key_added}_{name}"] = column
    write(own, var=columns)
    note(own, f"{key_added}_score", {"prediction": key, "spots": spots, **_left_out(measured, columns, key_added, usable, how)})
    return own if copy else None


def _prediction(adata: Any, key: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    if key not in adata.obsm:
        made = " (stexpr.tl.predict_expression makes it)" if key == EXPRESSION else ""
        raise DataError(f"obsm has no prediction {key!r}{made}; {nearest(key, adata.obsm)}")
    table, how = adata.obsm[key], noted(adata, key)
    if not isinstance(table, pd.DataFrame):
        raise DataError(f"obsm[{key!r}] is {type(table).__name__}, not a table with the names of genes; predict it again")
    return table, how


def _left_out(measured: Measured, columns: dict[str, Any], stem: str, usable: Any, how: dict[str, Any]) -> dict[str, Any]:
    r = columns[f"{stem}_r"][measured.columns]
    undefined = [gene for gene, value in zip(measured.genes, r, strict=True) if np.isnan(value)]
    unit = how.get("protocol", {}).get("expression", {})
    return {
        "genes": len(measured.genes),
        "genes_not_measured": list(measured.absent),
        "genes_undefined": undefined,
        "spots_left_out": int((~usable).sum()),
        "median_r": None if len(undefined) == len(r) else float(np.nanmedian(r)),
        # a model trained on smoothed or panel-normalized targets is scored on raw ones all the same
        "trained_on": {name: unit[name] for name in ("library", "smoothing") if name in unit},
    }
