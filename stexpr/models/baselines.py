"""The color ridge: what mean color and its spread alone say about expression.

A network that does not beat it has learned nothing about morphology.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from stexpr.errors import ModelError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
CHUNK = 16
"""Patches converted to float at a time; 25 MB at 256 px."""


def fitting_radii(radii_px: Sequence[int], window_px: int) -> tuple[int, ...]:
    """Return the radii whose disc fits the window and holds a pixel, in order.

    Raises:
        ModelError: None fits.
    """
    fitting = tuple(sorted(radius for radius in radii_px if 1 <= radius <= window_px / 2))
    if not fitting:
        raise ModelError(f"no disc of radius {', '.join(map(str, radii_px))} px fits a window of {window_px} px")
    return fitting


def disc_masks(radii_px: Sequence[int], window_px: int) -> Bool[Array, "K p"]:
    """Return for each radius which pixels of a window lie in the disc about its center."""
    offsets = np.arange(window_px) - (window_px - 1) / 2
    distance = np.hypot(offsets[:, None], offsets[None, :]).ravel()
    return np.stack([distance <= radius for radius in radii_px])


def color_features(patches: UInt8[Array, "S H W 3"], radii_px: Sequence[int]) -> Float32[Array, "S D"]:
    """Measure the mean and the standard deviation of red, green and blue in discs about each patch's center.

    Args:
        patches: Square patches.
        radii_px: Radii of the discs, each at most half the window.

    Returns:
        For each radius three means, then three standard deviations, in [0, 255].

    Raises:
        ModelError: A disc does not fit the window.
    """
    n, side = patches.shape[:2]
    if len(fitting_radii(radii_px, side)) != len(radii_px):
        raise ModelError(f"discs of radius {max(radii_px)} px do not fit patches of {side} px")
    masks = disc_masks(radii_px, side)
    inside = masks.any(axis=0)
    discs = masks[:, inside].astype(np.float64)
    n_pixels = masks.sum(axis=1)[:, None]
    features = np.empty((n, len(radii_px), 6), dtype=np.float32)
    for start in range(0, n, CHUNK):
        # sums of integers below 2^53 are exact, whatever order and number of threads BLAS takes
        pixels = patches[start : start + CHUNK].reshape(-1, side * side, 3)[:, inside].astype(np.float64)
        mean = discs @ pixels / n_pixels
        spread = np.sqrt(np.maximum(discs @ np.square(pixels) / n_pixels - np.square(mean), 0))
        features[start : start + CHUNK] = np.concatenate([mean, spread], axis=2)
    return features.reshape(n, 6 * len(radii_px))


class ColorRidge:
    """Ridge regression on standardized features, its penalty chosen on training spots by leaving groups out.

    One penalty serves all genes: the one with the least squared error on left-out groups, each gene weighted by its
    variance. With a single group, contiguous runs of its spots take the place of groups.

    Args:
        alphas: Penalties to choose from.

    Attributes:
        alpha: The penalty chosen, after `fit`.

    Raises:
        ModelError: There is no penalty, or one below 0.
    """

    N_RUNS = 5

    def __init__(self, alphas: Sequence[float]) -> None:
        if not alphas or min(alphas) < 0:
            raise ModelError(f"ridge regression needs penalties of at least 0 to choose from, not {list(alphas)}")
        self.alphas = tuple(alphas)
        self.alpha = float("nan")
        self._model: Any = None

    def fit(
        self, features: Float32[Array, "S D"], expression: Float[Array, "S G"], groups: Sequence[str] | Array
    ) -> "ColorRidge":
        """Choose the penalty and fit on all spots given, training spots only.

        Args:
            features: Color features.
            expression: What to predict.
            groups: Patient or section of each spot.

        Raises:
            ModelError: Fewer than two spots.
        """
        if len(features) < 2:
            raise ModelError(f"ridge regression needs at least two training spots, not {len(features)}")
        scale = np.maximum(expression.std(axis=0), 1e-6)
        wide = features.astype(np.float64)  # colors at neighboring radii are nearly collinear, too much so for float32
        errors = np.zeros(len(self.alphas))
        for held_out in self._held_out(np.asarray(groups)):
            for i, alpha in enumerate(self.alphas):
                model = _ridge(alpha).fit(wide[~held_out], expression[~held_out])
                # scikit-learn drops the axis of a single gene, and the difference would spread over all pairs of spots
                predicted = model.predict(wide[held_out]).reshape(-1, expression.shape[1])
                errors[i] += np.square((predicted - expression[held_out]) / scale).sum()
        self.alpha = self.alphas[int(errors.argmin())]
        self._model = _ridge(self.alpha).fit(wide, expression)
        return self

    def predict(self, features: Float32[Array, "S D"]) -> Float32[Array, "S G"]:
        """Predict expression.

        Raises:
            ModelError: It was not fitted.
        """
        if self._model is None:
            raise ModelError("the color ridge has to be fitted before it predicts")
        predicted = np.asarray(self._model.predict(features.astype(np.float64)), dtype=np.float32)
        return predicted.reshape(len(features), -1)

    def _held_out(self, groups: Array) -> Iterator[Bool[Array, "S"]]:
        names = list(dict.fromkeys(groups.tolist()))
        if len(names) > 1:
            yield from (groups == name for name in names)
            return
        for run in np.array_split(np.arange(len(groups)), min(self.N_RUNS, len(groups))):
            yield np.isin(np.arange(len(groups)), run)


def _ridge(alpha: float) -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), Ridge(alpha=alpha))
