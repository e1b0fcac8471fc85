"""Tissue domains: spots that are alike in expression or in features, whatever their positions."""

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int64

from stexpr.errors import MetricError
from stexpr.evaluate.metrics import check_pair, constant_per_gene

__all__ = ["domain_agreement", "find_domains", "neighbor_graph", "wanted_domains"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

GRAPH_NEIGHBORS = 15
"""Neighbors in expression that link the spots whose clusters are compared."""
N_COMPONENTS = 20
DOMAIN_DIGITS = 4
"""Decimals of the principal components, in SDs of the first, that make spots neighbors."""
RESOLUTIONS = (1e-3, 1e2)
_STEPS = 40


def neighbor_graph(values: Float[Array, "S D"], *, n_neighbors: int = GRAPH_NEIGHBORS, n_components: int = N_COMPONENTS) -> Any:
    """Link every spot with those nearest to it.

    Distances are taken along the principal components of the centered columns (not scaled: that would lift genes of mere
    noise). Links have no weights.

    Args:
        values: Expression or features.
        n_neighbors: Of each spot.
        n_components: Principal components, at most as many as spots or columns.

    Returns:
        An igraph Graph.

    Raises:
        MetricError: No more spots than neighbors, a value that is not finite, or all columns constant.
    """
    import igraph
    from sklearn.decomposition import PCA
    from sklearn.neighbors import kneighbors_graph

    _check_neighbors(n_neighbors, len(values))
    if not np.isfinite(values).all():
        raise MetricError(
            f"{int((~np.isfinite(values).all(axis=1)).sum())} of {len(values)} spots have values that are not finite"
        )
    if constant_per_gene(values).all():
        raise MetricError(f"all {values.shape[1]} columns are constant: there are no domains in them")
    pca = PCA(min(n_components, *values.shape), svd_solver="full")
    scores = pca.fit_transform(values.astype(np.float64))
    # Spots whose predictions repeat each other are as near as the last bits have it; without those, ties are ties.
    nearest = kneighbors_graph(np.round(scores / scores[:, 0].std(), DOMAIN_DIGITS), n_neighbors)
    return igraph.Graph(len(values), np.column_stack(sp.triu(nearest + nearest.T).nonzero()))


def find_domains(graph: Any, resolution: float = 1.0, *, seed: int = 0) -> Int64[Array, "S"]:
    """Cluster the spots of a graph by Leiden's method with modularity.

    Args:
        graph: From `neighbor_graph`.
        resolution: Higher makes more domains.
        seed: Of the random walk, which also follows the order of the spots.

    Returns:
        The domain of each spot, 0 for the largest; those of one size in the order of their first spots.

    Reference:
        Traag, Waltman and van Eck (2019), Scientific Reports 9:5233.
    """
    import random

    import igraph

    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(objective_function="modularity", resolution=resolution, n_iterations=-1)
    finally:
        igraph.set_random_number_generator(random)  # igraph's own default
    _, first, inverse, sizes = np.unique(found.membership, return_index=True, return_inverse=True, return_counts=True)
    rank = np.empty(len(sizes), dtype=np.int64)
    rank[np.lexsort((first, -sizes))] = np.arange(len(sizes))
    return rank[inverse]


def wanted_domains(graph: Any, n: int, *, seed: int = 0) -> tuple[Int64[Array, "S"], float]:
    """Find the resolution that makes `n` domains, by halving the range of its logarithm.

    Returns:
        The domains, and the resolution.

    Raises:
        MetricError: No resolution tried makes that many; the nearest numbers are named.
    """
    low, high = np.log(RESOLUTIONS)
    tried: dict[int, float] = {}
    for _ in range(_STEPS):
        middle = (low + high) / 2
        resolution = float(np.exp(middle))
        found = find_domains(graph, resolution, seed=seed)
        made = int(found.max()) + 1
        if made == n:
            return found, resolution
        tried[made] = resolution
        low, high = (middle, high) if made < n else (low, middle)
    near = ", ".join(f"{made} (resolution {tried[made]:.4g})" for made in sorted(tried, key=lambda made: abs(made - n))[:2])
    raise MetricError(f"no resolution tried makes {n} domains; the nearest are {near}: pass one of those, or another seed")


def domain_agreement(
    predicted: Float[Array, "S G"],
    measured: Float[Array, "S G"],
    *,
    resolution: float = 1.0,
    n_neighbors: int = GRAPH_NEIGHBORS,
    n_components: int = N_COMPONENTS,
    seed: int = 0,
) -> tuple[float, float]:
    """Compare the tissue domains found in predicted expression with those found in measured expression.

    Each side alone: `neighbor_graph`, then `find_domains`. Positions are not used. One section and one clustering are a
    coarse yardstick: look at several seeds or resolutions before ranking models by it.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same gene order.
        resolution: Of the Leiden clusters; higher makes more of them.
        n_neighbors: Of each spot in the graph.
        n_components: Principal components, at most as many as spots or genes.
        seed: Of the clustering, which also depends on the order of the spots.

    Returns:
        Adjusted Rand index (0 by chance, 1 for equal partitions) and normalized mutual information (0 to 1). Both NaN
        where all genes of one side are constant, or where neither side falls into domains.

    Raises:
        MetricError: No more spots than neighbors, unlike shapes, or a value that is not finite.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    check_pair(predicted, measured)
    _check_neighbors(n_neighbors, len(predicted))
    if constant_per_gene(predicted).all() or constant_per_gene(measured).all():
        return np.nan, np.nan
    graphs = (neighbor_graph(side, n_neighbors=n_neighbors, n_components=n_components) for side in (predicted, measured))
    found = [find_domains(graph, resolution, seed=seed) for graph in graphs]
    if not any(domains.any() for domains in found):
        return np.nan, np.nan
    return float(adjusted_rand_score(*found)), float(normalized_mutual_info_score(*found))


def _check_neighbors(n_neighbors: int, spots: int) -> None:
    if not 0 < n_neighbors < spots:
        raise MetricError(f"n_neighbors = {n_neighbors} with {spots} spots; it must be at least 1 and below the spots")
