"""The AnnData that a tool writes into."""

import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Int64

from stexpr.errors import DataError, nearest

__all__ = ["rows_by", "target", "write"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def target(adata: Any, copy: bool) -> Any:
    """Return the AnnData to write into: the one given, or a copy.

    Raises:
        DataError: It is no AnnData, or lies on disk.
    """
    import anndata

    if not isinstance(adata, anndata.AnnData):
        raise DataError(f"stexpr.tl works on an AnnData, got {type(adata).__name__}; take a table of a SpatialData by its name")
    if adata.isbacked:
        raise DataError(f"the AnnData is backed by {adata.filename}, which must not be changed; load it with adata.to_memory()")
    return adata.copy() if copy else adata


def write(adata: Any, **parts: Mapping[str, Any]) -> None:
    """Set entries of `obs`, `var` or `obsm`; a view becomes an AnnData of its own, as with any assignment to it."""
    import anndata

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", anndata.ImplicitModificationWarning)
        for part, values in parts.items():
            for key, value in values.items():
                getattr(adata, part)[key] = value


def rows_by(adata: Any, column: str, argument: str) -> dict[str, Int64[Array, "N"]]:
    """Group the spots by a column of `obs`, in the order of first appearance.

    Raises:
        DataError: There is no such column, or it is missing for some spots; the message names the argument.
    """
    if column not in adata.obs:
        raise DataError(f"{argument} = {column!r} is no column of obs; {nearest(column, map(str, adata.obs.columns))}")
    names = adata.obs[column]
    if names.isna().any():
        raise DataError(f"obs[{column!r}] is missing for {int(names.isna().sum())} of {len(names)} spots; each needs one")
    groups = adata.obs.groupby(names.astype(str), sort=False).indices
    return {str(name): np.asarray(rows, dtype=np.int64) for name, rows in groups.items()}
