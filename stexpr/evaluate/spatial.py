"""Agreement of maps, not only of spots: spatial autocorrelation and structural similarity.

All functions look at one section. Neighborhoods come from the positions alone, so square arrays (also jittered, sheared or
turned ones), Visium's hexagons and synthetic grids take the same path, and no result depends on the order of the spots.
"""

from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float64
from scipy.spatial import cKDTree

from stexpr.data.neighbors import lagged_product, lattice_pitch, pair_matrix, spot_positions
from stexpr.errors import MetricError
from stexpr.evaluate.diagnostics import standardized_pair

__all__ = [
    "bivariate_moran_per_gene",
    "moran_per_gene",
    "ssim_per_gene",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

WINDOW = 7
"""Side of a similarity window, in pitches: scikit-image's default, in pixels."""
K1, K2 = 0.01, 0.03
"""Wang et al.'s constants, as shares of the data range."""


def moran_per_gene(values: Float[Array, "S G"], weights: sp.csr_matrix) -> Float64[Array, "G"]:
    """Moran's I: how much a gene's value at a spot resembles that of its neighbors.

    Args:
        values: Expression, predicted or measured.
        weights: Spots x spots, from `neighbor_weights`.

    Returns:
        About -1/(S-1) without spatial structure, toward 1 for a smooth map; NaN for a constant gene or without any link.

    Raises:
        MetricError: Fewer than two spots, unlike sizes, or a value that is not finite.

    Reference:
        Moran (1950), Biometrika 37:17-23. Equal to `esda.Moran` and `squidpy.gr.spatial_autocorr` under the same weights.
    """
    return bivariate_moran_per_gene(values, values, weights)


def bivariate_moran_per_gene(
    predicted: Float[Array, "S G"], measured: Float[Array, "S G"], weights: sp.csr_matrix
) -> Float64[Array, "G"]:
    """How well the prediction at a spot agrees with what was measured around it, the spot itself left out.

    Beside r it tells a shift by a spot or two, or a coarse prediction, from one without any spatial truth.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same gene order.
        weights: Spots x spots, from `neighbor_weights`.

    Returns:
        Values mostly in [-1, 1]; NaN where a gene is constant on either side, or without any link.

    Raises:
        MetricError: Fewer than two spots, unlike sizes, or a value that is not finite.

    Reference:
        Anselin, Syabri and Smirnov (2002). Equal to `esda.Moran_BV`, except that spots without neighbors are not counted.
    """
    x, y = standardized_pair(predicted, measured)
    return lagged_product(x, y, weights)


def ssim_per_gene(
    predicted: Float[Array, "S G"],
    measured: Float[Array, "S G"],
    x_um: Float[Array, "S"],
    y_um: Float[Array, "S"],
    *,
    window: int = WINDOW,
) -> Float64[Array, "G"]:
    """Structural similarity of the predicted and the measured map.

    Both maps get SD 1 and the same mean over the section first: a regression's smaller spread is told by RMSE and
    `calibration_slope_per_gene`, and is not punished here a second time. That mean puts the smallest value of the two at 0,
    and the data range is the largest: with values of both signs, unlike means times unlike structure would praise an
    inverted map. Local means, spreads and covariances then run over square windows, `window` pitches wide, around each spot.

    A window takes the spots it covers. None is drawn twice or dropped, as a raster of a turned or hexagonal array would, and
    places without a spot are nothing rather than 0. Windows count that lack fewer spots than one row of the fullest one, so
    those over the rim of the tissue do not. On a full rectangle this is `skimage.metrics.structural_similarity` of the
    standardized maps.

    Args:
        predicted: Model output, in expression units.
        measured: Ground truth in the same gene order.
        x_um: Spot centers, microns.
        y_um: Spot centers, microns.
        window: Odd, at least 3.

    Returns:
        Mean over windows, in [-1, 1]; NaN where a gene is constant on either side, and for all genes where not even half a
        window is covered by spots anywhere.

    Raises:
        MetricError: An even window, or what `pearson_per_gene` or `neighbor_weights` refuses.

    Reference:
        Wang et al. (2004), IEEE Transactions on Image Processing 13:600-612.
    """
    if window < 3 or window % 2 == 0:
        raise MetricError(f"window = {window}; it must be odd and at least 3")
    x, y = standardized_pair(predicted, measured)
    xy = spot_positions(x_um, y_um)
    if len(xy) != len(x):
        raise MetricError(f"{len(xy)} positions for {len(x)} spots")
    near = cKDTree(xy).query_pairs(window / 2 * lattice_pitch(xy), p=np.inf, output_type="ndarray")
    covered = pair_matrix(near, len(xy)) + sp.eye(len(xy), format="csr")
    n = np.asarray(covered.sum(axis=1)).ravel()
    low = np.minimum(x.min(axis=0), y.min(axis=0))
    x, y = x - low, y - low
    data_range = np.maximum(x.max(axis=0), y.max(axis=0))
    if n.max() < window**2 / 2:
        return np.full(x.shape[1], np.nan)
    full = n > n.max() - window
    covered, n = covered[full], n[full][:, None]

    def mean(values: Float64[Array, "S G"]) -> Float64[Array, "N G"]:
        return np.asarray((covered @ values) / n)

    mx, my, unbiased = mean(x), mean(y), n / (n - 1)
    var = unbiased * (mean(x * x) + mean(y * y) - mx**2 - my**2)
    cov = unbiased * (mean(x * y) - mx * my)
    c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
    similarity = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (var + c2))
    return np.asarray(similarity.mean(axis=0))
