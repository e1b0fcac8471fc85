"""Null baselines: what depth, position, a look-up of colors, other genes and neighboring spots say about expression.

What is fitted sees training spots only. Two also read what was measured on the test spots, and have to be labelled so:
`DepthOnly` their library size, `neighbor_oracle` their expression.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Float32, Float64

from stexpr.errors import GeneError, ModelError
from stexpr.models.ridge import GroupedRidge

__all__ = ["DepthOnly", "NearestColor", "SpotCoordinates", "neighbor_oracle", "permuted_genes"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Names: TypeAlias = Sequence[str] | Array

DEGREE = 4  # a ring of tissue between center and edge needs the second and the fourth power of position
BLOCK = 256  # spots compared at a time; their distances to 30,000 training spots take 60 MB


class DepthOnly:
    """Least squares of each gene on the spot's own log library size, which is measured: no image tells it.

    Normalized expression still depends on depth, because log1p of a few counts is not linear and because depth follows
    tissue. A straight line, not a parabola, which turns around on test spots deeper than all training spots.
    """

    _line: tuple[float, Array, Array] | None = None

    def fit(self, library: Float[Array, "S"], expression: Float[Array, "S G"]) -> "DepthOnly":
        """Fit on training spots; a library size that is the same in all of them leaves the mean of each gene.

        Args:
            library: Counts of each spot over the whole library.
            expression: What to predict.

        Raises:
            ModelError: Fewer than two spots, or a library size that is not above 0.
        """
        if len(library) < 2:
            raise ModelError(f"a line on library size needs at least two training spots, not {len(library)}")
        depth = _log_library(library)
        centered = depth - depth.mean()
        spread = centered @ centered if np.ptp(depth) > 0 else np.inf
        wide = expression.astype(np.float64)
        self._line = float(depth.mean()), wide.mean(axis=0), centered @ wide / spread
        return self

    def predict(self, library: Float[Array, "S"]) -> Float32[Array, "S G"]:
        """Predict expression from the test spots' measured library sizes.

        Raises:
            ModelError: It was not fitted, or a library size is not above 0.
        """
        if self._line is None:
            raise ModelError("the depth baseline has to be fitted before it predicts")
        center, mean, slope = self._line
        return np.asarray(mean + np.outer(_log_library(library) - center, slope), dtype=np.float32)


class SpotCoordinates:
    """Ridge regression on a quartic of each spot's position inside its section, its penalty chosen as the color ridge's.

    Positions count from the middle of the section's spots, in units of their spread: moving or scaling a section changes
    nothing, turning or flipping it does. Sections lie on their slides at any angle, so skill on other patients means a
    layout their tissues share (layers about a center), or sections that were mounted alike.

    Args:
        alphas: Penalties to choose from.

    Raises:
        ModelError: There is no penalty, or one below 0.
    """

    def __init__(self, alphas: Sequence[float]) -> None:
        self._ridge = GroupedRidge(alphas)

    @property
    def alpha(self) -> float:
        """The penalty chosen; NaN before `fit`."""
        return self._ridge.alpha

    def fit(
        self, xy_um: Float[Array, "S 2"], sections: Names, expression: Float[Array, "S G"], groups: Names
    ) -> "SpotCoordinates":
        """Choose the penalty and fit on all spots given, training spots only.

        Args:
            xy_um: Spot centers.
            sections: Section of each spot.
            expression: What to predict.
            groups: Patient or section of each spot, left out in turn to choose the penalty.

        Raises:
            ModelError: Fewer than two spots.
        """
        self._ridge.fit(_position_features(xy_um, sections), expression, groups)
        return self

    def predict(self, xy_um: Float[Array, "S 2"], sections: Names) -> Float32[Array, "S G"]:
        """Predict expression; all spots of a section have to be given together, since they set its center and extent.

        Raises:
            ModelError: It was not fitted.
        """
        if np.isnan(self.alpha):
            raise ModelError("the coordinate baseline has to be fitted before it predicts")
        return self._ridge.predict(_position_features(xy_um, sections))


class NearestColor:
    """Look-up: a spot gets the measured expression of the training spot of the nearest color.

    Colors are standardized on the training spots and compared by Euclidean distance. Training spots equally near up to
    rounding are a tie, which the first of them wins.
    """

    _scaler: Any = None

    def fit(self, features: Float32[Array, "S D"], expression: Float[Array, "S G"]) -> "NearestColor":
        """Keep the training spots' color features and expression.

        Raises:
            ModelError: No spot.
        """
        from sklearn.preprocessing import StandardScaler

        if not len(features):
            raise ModelError("a look-up of colors needs a training spot, there is none")
        wide = features.astype(np.float64)
        self._scaler = StandardScaler().fit(wide)
        self._known = self._scaler.transform(wide)
        self._expression = expression.astype(np.float32)
        return self

    def predict(self, features: Float32[Array, "S D"]) -> Float32[Array, "S G"]:
        """Return the measured expression of each spot's nearest training spot.

        Raises:
            ModelError: It was not fitted.
        """
        from scipy.spatial.distance import cdist

        if self._scaler is None:
            raise ModelError("the nearest color has to be fitted before it predicts")
        nearest = np.empty(len(features), dtype=np.int64)
        for start in range(0, len(features), BLOCK):
            rows = slice(start, start + BLOCK)
            distance = cdist(self._scaler.transform(features[rows].astype(np.float64)), self._known)
            nearest[rows] = (distance <= distance.min(axis=1, keepdims=True) * (1 + 1e-9)).argmax(axis=1)
        return np.asarray(self._expression[nearest])


def permuted_genes(
    predicted: Float[Array, "S G"],
    genes: Sequence[str],
    training_mean: Float[Array, "G"],
    training_sd: Float[Array, "G"],
    *,
    seed: int,
) -> Float32[Array, "S G"]:
    """Give every gene the prediction of another one, brought to its own training mean and SD: the random-gene baseline.

    What it scores is a factor that genes share (depth, cell density), not knowledge of a gene. The genes, sorted by a hash
    of seed and name, form one cycle along which predictions move a step: no gene keeps its own, the order of the genes
    does not matter, and a gene more or less in a panel changes its neighbor in the cycle only.

    Args:
        predicted: Expression predicted by any model.
        genes: Names, in the order of the columns.
        training_mean: Mean of each gene's expression over the training spots.
        training_sd: Its standard deviation; a donor gene with SD 0 says nothing and gives the training mean.
        seed: Seed of the cycle.

    Raises:
        GeneError: Fewer than two genes, or a name twice.

    Example:
        >>> permuted_genes(np.array([[1.0, 20.0]]), ["A", "B"], np.array([0.0, 10.0]), np.array([1.0, 5.0]), seed=0)
        array([[ 2., 15.]], dtype=float32)
    """
    if len(genes) < 2 or len(set(genes)) < len(genes):
        raise GeneError(f"only two or more unlike genes can trade predictions, not {len(genes)} of {len(set(genes))} names")
    cycle = sorted(range(len(genes)), key=lambda i: hashlib.sha256(f"{seed}:{genes[i]}".encode()).digest())
    donor = np.empty(len(genes), dtype=np.int64)
    donor[cycle] = np.roll(cycle, 1)
    mean, sd = training_mean.astype(np.float64), training_sd.astype(np.float64)
    standardized = (predicted - mean) / np.where(sd > 0, sd, np.inf)
    return (standardized[:, donor] * sd + mean).astype(np.float32)


def neighbor_oracle(measured: Float[Array, "S G"], xy_um: Float[Array, "S 2"], k: int = 8) -> Float32[Array, "S G"]:
    """Predict each spot of one section by the mean measured expression of its nearest other spots.

    It sees the test data and no model can: a reference from above for what is smooth in space. It is no bound, since
    neighbors are as noisy as the spot and differ from it. Call it section by section.

    Args:
        measured: Expression of all spots of a section.
        xy_um: Spot centers. Which of equally far neighbors enter depends on their places, not on the order of the spots.
        k: Neighbors averaged; a section of fewer than k + 1 spots takes all others.

    Raises:
        ModelError: A single spot, which has no neighbor, or k below 1.

    Example:
        >>> line = np.array([[0.0, 0.0], [1.0, 0.0], [3.0, 0.0]])
        >>> neighbor_oracle(np.array([[1.0], [2.0], [6.0]]), line, k=1).ravel()
        array([2., 1., 2.], dtype=float32)
    """
    from scipy.spatial import cKDTree

    n = len(measured)
    if n < 2 or k < 1:
        raise ModelError(f"the neighbor oracle needs two spots in a section and k of at least 1, not {n} spots and k = {k}")
    k = min(k, n - 1)
    order = np.lexsort(xy_um.T)
    _, near = cKDTree(xy_um[order]).query(xy_um[order], k=k + 1)
    others = near != np.arange(n)[:, None]
    others[others.all(axis=1), -1] = False  # spots in the very same place can crowd a spot out of its own list
    weights = sp.csr_matrix((np.full(n * k, 1 / k), near[others], np.arange(0, n * k + 1, k)), shape=(n, n))
    predicted = np.empty(measured.shape, dtype=np.float32)
    predicted[order] = weights @ measured[order].astype(np.float64)
    return predicted


def _log_library(library: Float[Array, "S"]) -> Float64[Array, "S"]:
    if not (library > 0).all():
        raise ModelError(f"library sizes have to be above 0, the least is {library.min():g}; drop spots without counts")
    return np.log(library.astype(np.float64))


def _position_features(xy_um: Float[Array, "S 2"], sections: Names) -> Float32[Array, "S D"]:
    """Return x^i y^j, 1 <= i + j <= 4; x and y from the middle of a section's spots, in SDs, 0 if all lie in one place."""
    place = np.zeros(xy_um.shape, dtype=np.float64)
    names = np.asarray(sections)
    for name in dict.fromkeys(names.tolist()):
        own = xy_um[names == name].astype(np.float64)
        if (own != own[0]).any():
            place[names == name] = (own - own.mean(axis=0)) / np.sqrt(own.var(axis=0).mean())
    x, y = place.T
    powers = [(i, total - i) for total in range(1, DEGREE + 1) for i in range(total + 1)]
    return np.stack([x**i * y**j for i, j in powers], axis=1).astype(np.float32)
