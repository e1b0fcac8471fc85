"""Whether a prediction agrees with a measured map better than any other map as smooth as itself would.

Neighboring spots resemble each other, in tissue and in every prediction from overlapping context. Two unrelated smooth maps
therefore correlate strongly by accident, and a test that counts spots as independent observations calls a third or more of such
pairs significant.
"""

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int

from stexpr.data.neighbors import spot_positions
from stexpr.errors import MetricError
from stexpr.evaluate.diagnostics import standardized_pair

__all__ = ["SpatialModes", "SpatialNull", "spatial_modes", "spatial_null_p"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

SURROGATES = 999
MOST_SPOTS = 6000
"""The eigenvectors take time with the cube of the spots; a full Visium area has 4,992."""
SAME_EIGENVALUE = 1e-10
"""Gap, against the largest eigenvalue, below which two are one."""
TIE = 1e-9
"""A surrogate that repeats the observed map may differ from it in the last bits, and must count."""


@dataclass(frozen=True)
class SpatialModes:
    """Patterns of a section from fine to coarse, orthonormal and each of mean 0.

    Attributes:
        vectors: One pattern per column.
        starts: First column of each run of patterns with one eigenvalue, which symmetry makes interchangeable (the two
            directions of a square section, for one): most runs hold one column.
    """

    vectors: Float64[Array, "S K"]
    starts: Int[Array, "J"]


@dataclass(frozen=True)
class SpatialNull:
    """How far agreement exceeds that of surrogate predictions, per gene; NaN where a gene is constant on either side.

    Attributes:
        p: One-sided, at least 1 / (surrogates + 1).
        z: r in standard deviations of the surrogates' r, exact rather than drawn. Their distribution is not normal
            where a few coarse patterns dominate: rank by z, test by p.
    """

    p: Float64[Array, "G"]
    z: Float64[Array, "G"]


def spatial_modes(x_um: Float[Array, "S"], y_um: Float[Array, "S"]) -> SpatialModes:
    """Find the spatial patterns of a section, once for all its genes and models.

    They are Moran's eigenvector maps under weights that fall linearly with distance (1 - d / d_max). Adjacency weights, the
    usual choice, do not see that a gradient runs through a whole section: between unrelated maps with gradients their test
    gave 32 to 38 % false positives, this one 5 to 7 %, at a nominal 5 %.

    Args:
        x_um: Spot centers, microns.
        y_um: Spot centers, microns.

    Returns:
        One pattern less than there are spots; a fraction of a second for 700 spots, about half a minute for 5,000.

    Raises:
        MetricError: Fewer than three spots or more than 6,000, or a position that is not finite.

    Reference:
        Dray, Legendre and Peres-Neto (2006), Ecological Modelling 196:483-493.
    """
    from scipy.spatial.distance import cdist

    xy = spot_positions(x_um, y_um)
    if not 3 <= len(xy) <= MOST_SPOTS:
        raise MetricError(
            f"{len(xy)} spots; the spatial null takes 3 to {MOST_SPOTS}. Average neighboring spots, or test regions of the "
            "section"
        )
    kernel = -cdist(xy, xy)
    mean = kernel.mean(axis=0)
    kernel += mean.mean() - mean - mean[:, None]
    # Spots in one place share the constant's eigenvalue 0: moved far below all others, it is the first, and left out.
    kernel -= np.trace(kernel) / len(xy)
    values, vectors = np.linalg.eigh(kernel)
    starts = np.flatnonzero(np.diff(values[1:], prepend=-np.inf) > SAME_EIGENVALUE * values[-1])
    return SpatialModes(vectors[:, 1:], starts)


def spatial_null_p(
    predicted: Float[Array, "S G"],
    measured: Float[Array, "S G"],
    modes: SpatialModes,
    *,
    n: int = SURROGATES,
    seed: int = 0,
) -> SpatialNull:
    """Test whether r exceeds that of surrogate predictions with the same spatial autocorrelation.

    A surrogate keeps how much of the prediction's variance each spatial pattern carries, and so its smoothness at every
    scale, but gives each pattern a random sign (patterns of one eigenvalue: a random rotation). All genes share the draws. A
    map made of a few coarse patterns has few surrogates unlike itself, and no small p: a gradient that agrees with a
    gradient is weak evidence.

    Measured on 4,000 unrelated pairs per kind of map (Gaussian fields of length 1 to 8 pitches, gradients) over six tissue
    shapes of 180 to 720 spots: 3.5 to 7.2 % at a nominal 5 %, where the usual test of r gave 9 to 48 %.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same gene order.
        modes: Of this section, from `spatial_modes`.
        n: Number of surrogates.
        seed: Recorded with the scores.

    Returns:
        One-sided p and z per gene.

    Raises:
        MetricError: Modes of another section, no surrogate, or what `pearson_per_gene` refuses.

    Reference:
        Wagner and Dray (2015), Methods in Ecology and Evolution 6:1169-1178 (their singleton procedure).
    """
    if len(modes.vectors) != len(predicted):
        raise MetricError(f"modes of {len(modes.vectors)} spots for expression of {len(predicted)}; take those of this section")
    if n < 1:
        raise MetricError(f"n = {n} surrogates; at least 1 is needed")
    x, y = standardized_pair(predicted, measured)
    a, b = modes.vectors.T @ x, modes.vectors.T @ y  # (K, G)
    r = np.einsum("kg,kg->g", a, b) / len(x)

    def lengths(of: Float64[Array, "K N"]) -> Float64[Array, "J N"]:
        return np.sqrt(np.add.reduceat(of * of, modes.starts, axis=0))

    # In a run of m patterns the rotated coefficients meet the measured ones at an angle whose cosine is that of a random
    # direction in m dimensions with a fixed one; for m = 1 it is a sign.
    strength = lengths(a) * lengths(b) / len(x)
    drawn = np.random.default_rng(seed).normal(size=(a.shape[0], n))
    surrogates = (drawn[modes.starts] / lengths(drawn)).T @ strength  # (R, G)
    p = (1 + (surrogates >= r - TIE).sum(axis=0)) / (n + 1)
    size = np.diff(modes.starts, append=a.shape[0])[:, None]
    return SpatialNull(np.where(np.isnan(r), np.nan, p), r / np.sqrt((strength**2 / size).sum(axis=0)))
