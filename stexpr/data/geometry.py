"""Where the spots of a section lie: who is around whom, contiguous blocks, distances."""

from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int
from scipy.spatial import cKDTree

__all__ = ["distance_to", "neighborhood_mean", "slabs", "spatial_block"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

REACH: Final = 1.6
"""Spot pitches within which a spot is around another: the 8 about it on a square lattice (diagonal: 1.41), 6 on a hexagonal."""


def neighborhood_mean(spots: pd.DataFrame) -> sp.csr_matrix:
    """Return the matrix that averages a spot with the spots around it in its section.

    The pitch of a section is the median distance to the nearest spot.

    Args:
        spots: One row per spot with `section`, `x_um` and `y_um`.

    Returns:
        Spots x spots, rows summing to 1; a spot with none around it keeps its own value.
    """
    parts, order = [], []
    for _, rows in spots.groupby("section", sort=False).indices.items():
        xy = spots.iloc[rows][["x_um", "y_um"]].to_numpy(dtype=float)
        tree = cKDTree(xy)
        pitch = float(np.median(tree.query(xy, k=2)[0][:, 1])) if len(xy) > 1 else 0.0
        pairs = tree.query_pairs(REACH * pitch, output_type="ndarray")
        near = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(xy), len(xy)))
        around = near + near.T + sp.identity(len(xy), format="csr")
        parts.append(sp.diags(1 / np.asarray(around.sum(axis=1)).ravel()) @ around)
        order.append(rows)
    together = sp.block_diag(parts, format="csr")
    back = np.argsort(np.concatenate(order))
    return together[back][:, back]


def spatial_block(xy: Float[Array, "S 2"], fraction: float, *, start: float = 0.0) -> Bool[Array, "S"]:
    """Mark a contiguous slab of spots across the longest axis of the tissue.

    Args:
        xy: Positions, any length unit.
        fraction: Share of the spots in the slab.
        start: Where it begins, as a share of the spots along the axis; it is moved back if it would run over the end.

    Returns:
        True for the spots of the slab, at least one of them.
    """
    order = _along_longest_axis(xy)
    size = min(len(xy), max(1, round(fraction * len(xy))))
    first = min(round(start * len(xy)), len(xy) - size)
    block = np.zeros(len(xy), dtype=bool)
    block[order[first : first + size]] = True
    return block


def slabs(xy: Float[Array, "S 2"], n: int) -> Int[Array, "S"]:
    """Divide spots into `n` contiguous slabs of nearly equal size across the longest axis of the tissue.

    Returns:
        The number of each spot's slab, from 0.
    """
    number = np.empty(len(xy), dtype=np.int64)
    for i, part in enumerate(np.array_split(_along_longest_axis(xy), n)):
        number[part] = i
    return number


def distance_to(xy: Float[Array, "S 2"], others: Float[Array, "N 2"]) -> Float[Array, "S"]:
    """Return each spot's distance to the nearest of `others`, by the longer of the two axes.

    Two square windows overlap exactly when this distance of their centers is below their side.
    """
    distance, _ = cKDTree(others).query(xy, k=1, p=np.inf)
    return np.asarray(distance, dtype=float)


def _along_longest_axis(xy: Float[Array, "S 2"]) -> Int[Array, "S"]:
    """Return the order of spots along the axis on which they spread most."""
    centered = xy - xy.mean(axis=0)
    axis = np.linalg.eigh(centered.T @ centered)[1][:, -1]
    axis = axis if axis[np.abs(axis).argmax()] > 0 else -axis  # the sign of an eigenvector is arbitrary
    order: Array = np.argsort(centered @ axis, kind="stable")
    return order
