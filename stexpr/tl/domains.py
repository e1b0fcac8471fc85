"""Tissue domains of an AnnData: clusters of spots by the features of their image, or by expression."""

from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float

from stexpr.data.provenance import note
from stexpr.errors import DataError, nearest
from stexpr.evaluate.domains import GRAPH_NEIGHBORS, N_COMPONENTS, find_domains, neighbor_graph, wanted_domains
from stexpr.tl.target import target, write

__all__ = ["spatial_domains"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def spatial_domains(
    adata: Any,
    *,
    use_rep: str = "X_stexpr",
    n_domains: int | None = None,
    resolution: float = 1.0,
    n_neighbors: int = GRAPH_NEIGHBORS,
    n_components: int = N_COMPONENTS,
    seed: int = 0,
    key_added: str = "stexpr_domains",
    copy: bool = False,
) -> Any:
    """Cluster the spots: principal components, a graph of nearest neighbors, Leiden clusters.

    Where spots lie is not used, so a domain that holds together over the tissue was found, not imposed. The same call on the
    same spots in the same order gives the same domains.

    Args:
        adata: After `embed`, or with another table to cluster.
        use_rep: Key in `obsm`, such as `X_stexpr` or `stexpr_expression`, or `X`, which is taken as it is: normalized, not
            counts.
        n_domains: How many are wanted: the resolution is then searched for.
        resolution: Higher makes more domains.
        n_neighbors: Of each spot in the graph.
        n_components: Principal components, at most as many as spots or columns.
        seed: Of the clustering.
        key_added: Column of `obs`.
        copy: Return a copy and leave `adata` as it is.

    Returns:
        None, or the copy. Set are `obs[key_added]`, categories `0` (the largest), `1` and so on, missing for spots whose row
        in `use_rep` is NaN; and `uns["stexpr"]`.

    Raises:
        DataError: There is no such table; `adata` is backed.
        MetricError: No more spots than neighbors, columns that are all constant, or no resolution makes that many domains.

    Example:
        >>> import anndata, stexpr
        >>> features = np.random.default_rng(0).normal(size=(60, 8)) + 4 * np.repeat(np.eye(3, 8), 20, axis=0)
        >>> adata = anndata.AnnData(obs=pd.DataFrame(index=[f"spot{i}" for i in range(60)]), obsm={"X_stexpr": features})
        >>> stexpr.tl.spatial_domains(adata, n_domains=3)
        >>> adata.obs["stexpr_domains"].value_counts().tolist()
        [20, 20, 20]
    """
    own = target(adata, copy)
    values = _values(own, use_rep)
    known = np.isfinite(values).all(axis=1)
    graph = neighbor_graph(values[known], n_neighbors=n_neighbors, n_components=n_components)
    if n_domains is None:
        found = find_domains(graph, resolution, seed=seed)
    else:
        found, resolution = wanted_domains(graph, n_domains, seed=seed)
    names = np.full(len(values), None, dtype=object)
    names[known] = found.astype(str)
    categories = [str(domain) for domain in range(int(found.max()) + 1)]
    write(own, obs={key_added: pd.Categorical(names, categories=categories)})
    how = {"use_rep": use_rep, "resolution": resolution, "n_neighbors": n_neighbors, "n_components": n_components, "seed": seed}
    note(own, key_added, how | {"n_domains": len(categories), "left_out": {"not finite": int((~known).sum())}})
    return own if copy else None


def _values(adata: Any, use_rep: str) -> Float[Array, "S D"]:
    if use_rep != "X" and use_rep not in adata.obsm:
        made = " (stexpr.tl.embed makes it)" if use_rep == "X_stexpr" else ""
        raise DataError(f"obsm has no {use_rep!r}{made}; {nearest(use_rep, [*adata.obsm, 'X'])}")
    values = adata.X if use_rep == "X" else adata.obsm[use_rep]
    dense = values.toarray() if sp.issparse(values) else np.asarray(values)
    if dense.ndim != 2 or dense.dtype.kind not in "fiu":
        raise DataError(f"{use_rep} holds {dense.dtype} of shape {dense.shape}, not numbers of spots x columns")
    return dense if dense.dtype.kind == "f" else dense.astype(np.float64)
