"""The color ridge: what mean color and its spread alone say about expression.

A network that does not beat it has learned nothing about morphology.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from stexpr.errors import ModelError

Array: TypeAlias = np.ndarray[Any, Any]
CHUNK = 32
"""Patches converted to float at a time."""


def fitting_radii(radii_px: Sequence[int], window_px: int) -> tuple[int, ...]:
    """Return the radii whose disc fits the window.

    Raises:
        ModelError: None fits.
    """
    fitting = tuple(sorted(radius for radius in radii_px if 2 * radius <= window_px))
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
    weights = (masks[:, inside] / masks.sum(axis=1, keepdims=True)).astype(np.float32)  # (K, p)
    features = np.empty((n, len(radii_px), 6), dtype=np.float32)
    for start in range(0, n, CHUNK):
        chunk = patches[start : start + CHUNK].reshape(-1, side * side, 3)[:, inside]
        pixels = np.ascontiguousarray(chunk.transpose(1, 0, 2)).reshape(len(weights.T), -1).astype(np.float32)
        mean = (weights @ pixels).reshape(len(weights), -1, 3)
        square = (weights @ np.square(pixels)).reshape(len(weights), -1, 3)
        spread = np.sqrt(np.maximum(square - np.square(mean), 0))
        features[start : start + CHUNK] = np.concatenate([mean, spread], axis=2).transpose(1, 0, 2)
    return features.reshape(n, -1)


class ColorRidge:
    """Ridge regression on standardized features, its penalty chosen on training spots by leaving groups out.

    One penalty serves all genes: the one with the least squared error on left-out groups, each gene weighted by its
    variance. With a single group, contiguous runs of its spots take the place of groups.

    Attributes:
        alpha: The penalty chosen, after `fit`.
    """

    N_RUNS = 5

    def __init__(self, alphas: Sequence[float]) -> None:
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
        errors = np.zeros(len(self.alphas))
        for held_out in self._held_out(np.asarray(groups)):
            for i, alpha in enumerate(self.alphas):
                model = _ridge(alpha).fit(features[~held_out], expression[~held_out])
                errors[i] += np.square((model.predict(features[held_out]) - expression[held_out]) / scale).sum()
        self.alpha = self.alphas[int(errors.argmin())]
        self._model = _ridge(self.alpha).fit(features, expression)
        return self

    def predict(self, features: Float32[Array, "S D"]) -> Float32[Array, "S G"]:
        """Predict expression.

        Raises:
            ModelError: It was not fitted.
        """
        if self._model is None:
            raise ModelError("the color ridge has to be fitted before it predicts")
        predicted = np.asarray(self._model.predict(features), dtype=np.float32)
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
