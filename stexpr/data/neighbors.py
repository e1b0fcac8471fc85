"""Spots as neighbors of one another, and how a map agrees with what lies around each of its spots.

Neighborhoods come from the positions alone, so square arrays (also jittered, sheared or turned ones), Visium's hexagons and
synthetic grids take the same path, and no result depends on the order of the spots.
"""

from typing import Any, Final, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float64, Int
from scipy.spatial import cKDTree

from stexpr.errors import MetricError

__all__ = ["lagged_product", "lattice_pitch", "neighbor_weights", "pair_matrix", "spot_positions"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

REACH: Final = 1.25
"""In pitches. Neighbors lie at 1, the next spots at 1.41 on squares and at 1.73 on hexagons; HER2ST's jitter puts 99 % of
the neighbors below 1.25 and 99 % of the diagonals above 1.23."""


def spot_positions(x_um: Float[Array, "S"], y_um: Float[Array, "S"]) -> Float64[Array, "S 2"]:
    """Join coordinates, x then y, refusing what has no neighborhood.

    Raises:
        MetricError: Unlike lengths, a position that is not finite, or fewer than two distinct positions.
    """
    if x_um.shape != y_um.shape:
        raise MetricError(f"{len(x_um)} x and {len(y_um)} y coordinates; every spot needs both")
    xy = np.column_stack([x_um, y_um]).astype(np.float64)
    if not np.isfinite(xy).all():
        raise MetricError(f"{int((~np.isfinite(xy).all(axis=1)).sum())} of {len(xy)} spots have no finite position")
    if len(xy) < 2 or not np.ptp(xy, axis=0).any():
        raise MetricError(f"{len(xy)} spots in one place; a map needs at least two positions")
    return xy


def neighbor_weights(x_um: Float[Array, "S"], y_um: Float[Array, "S"], *, reach: float = REACH) -> sp.csr_matrix:
    """Link every spot with those around it, each spot's links sharing a weight of 1.

    Spots are neighbors, mutually, when they lie within `reach` pitches; the pitch is the median distance from a spot to its
    three nearest. That is four neighbors inside a square array and six inside a hexagonal one. A fixed number of nearest
    neighbors would break ties between diagonals by the order of the spots, and reach across gaps.

    Args:
        x_um: Spot centers, microns.
        y_um: Spot centers, microns.
        reach: In pitches; 1.5 adds the diagonals of a square array.

    Returns:
        Spots x spots; rows sum to 1, or to 0 for a spot without neighbors, which then takes no part in a lag. The pattern
        is symmetric, the weights are not.

    Raises:
        MetricError: A position that is not finite, or fewer than two distinct positions.

    Example:
        >>> neighbor_weights(np.array([0.0, 1.0, 2.0, 9.0]), np.zeros(4), reach=1.0).toarray()[1]
        array([0.5, 0. , 0.5, 0. ])
    """
    xy = spot_positions(x_um, y_um)
    linked = pair_matrix(cKDTree(xy).query_pairs(reach * lattice_pitch(xy), output_type="ndarray"), len(xy))
    links = np.asarray(linked.sum(axis=1)).ravel()
    return sp.csr_matrix(sp.diags(1 / np.maximum(links, 1)) @ linked)


def lagged_product(x: Float64[Array, "S G"], y: Float64[Array, "S G"], weights: sp.csr_matrix) -> Float64[Array, "G"]:
    """Average x at a spot times y around it over all links, for all genes with one sparse product.

    Args:
        x: Values of mean 0 and SD 1 over the spots.
        y: The same; x itself gives Moran's I, another map the bivariate one.
        weights: Spots x spots, from `neighbor_weights`.

    Returns:
        One value per gene; NaN where a gene holds NaN, or without any link.

    Raises:
        MetricError: The weights are of other spots.
    """
    if weights.shape != (len(x), len(x)):
        raise MetricError(
            f"weights are {weights.shape[0]} x {weights.shape[1]} for {len(x)} spots; both sides must be the spots"
        )
    total = float(weights.sum())
    return np.asarray(np.einsum("sg,sg->g", x, weights @ y) / (total if total > 0 else np.nan))


def lattice_pitch(xy: Float64[Array, "S 2"]) -> float:
    """Measure the pitch of an array: the median distance from a spot to its three nearest.

    Raises:
        MetricError: Most spots lie on another one.
    """
    # Under jitter the nearest spot alone is nearer than the pitch (by 6 % on HER2ST); the median of three is not.
    distances = cKDTree(xy).query(xy, k=min(4, len(xy)))[0][:, 1:]
    pitch = float(np.median(distances))
    if pitch == 0:
        raise MetricError("most spots share their position with others; give one row per spot of one section")
    return pitch


def pair_matrix(pairs: Int[Array, "N 2"], n: int) -> sp.csr_matrix:
    """Return the symmetric 0/1 matrix of pairs of spots, each pair given once."""
    one_way = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return sp.csr_matrix(one_way + one_way.T)
