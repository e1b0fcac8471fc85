"""Baselines a network has to beat: the training mean, and ridge regression on colors."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped, UInt8

from stexpr.errors import ModelError

Array: TypeAlias = np.ndarray[Any, Any]

N_BLOCKS = 5
SPOTS_AT_A_TIME = 16  # 256-px patches as float64 then fill 25 MB


def color_features(patches: UInt8[Array, "S H W 3"], radii: Sequence[int]) -> Float[Array, "S D"]:
    """Describe each patch by the mean and SD of its colors in discs around the center.

    A pixel belongs to a disc when its center is at most the radius away from the center of the patch. The sums are of
    integers below 2^53, so they are exact and do not depend on the number of threads.

    Args:
        patches: RGB patches.
        radii: Radii of the discs in pixels; a disc that does not fit the patch is left out.

    Returns:
        For each radius used, in the order given: mean of red, green, blue, then their SDs, in 0 to 255.

    Raises:
        ModelError: No disc fits.

    Example:
        >>> color_features(np.full((1, 8, 8, 3), 200, np.uint8), [2, 4, 8]).tolist()  # 8 does not fit
        [[200.0, 200.0, 200.0, 0.0, 0.0, 0.0, 200.0, 200.0, 200.0, 0.0, 0.0, 0.0]]
    """
    side = min(patches.shape[1:3])
    used = [radius for radius in radii if 2 * radius <= side]
    if not used:
        raise ModelError(f"no disc of radius {', '.join(map(str, radii))} px fits a patch of {side} px; lower model.radii_px")
    rows, columns = (_reach(length, max(used)) for length in patches.shape[1:3])
    discs = np.stack([_disc(*patches.shape[1:3], radius)[rows, columns].ravel() for radius in used])
    indicator, n_pixels = discs.astype(np.float64), discs.sum(axis=1)[:, None]
    features = np.empty((len(patches), 6 * len(used)))
    for start in range(0, len(patches), SPOTS_AT_A_TIME):
        part = patches[start : start + SPOTS_AT_A_TIME, rows, columns]
        values = part.reshape(len(part), -1, 3).astype(np.float64)
        mean = indicator @ values / n_pixels  # (spots, radii, 3)
        values *= values
        variance = np.maximum(indicator @ values / n_pixels - mean**2, 0)
        features[start : start + len(part)] = np.concatenate([mean, np.sqrt(variance)], axis=2).reshape(len(part), -1)
    return features


def _reach(side: int, radius: int) -> slice:
    """Return the pixels along one axis that a centered disc can touch."""
    margin = max(0, side // 2 - radius)
    return slice(margin, side - margin)


def _disc(height: int, width: int, radius: int) -> Bool[Array, "H W"]:
    y = np.arange(height)[:, None] - (height - 1) / 2
    x = np.arange(width) - (width - 1) / 2
    return np.asarray(x**2 + y**2 <= radius**2)


class TrainingMean:
    """Predicts the training spots' mean expression for every spot."""

    def fit(self, expression: Float[Array, "S G"]) -> "TrainingMean":
        """Take the mean of the training spots."""
        self.mean = expression.mean(axis=0, dtype=np.float64)
        return self

    def predict(self, n_spots: int) -> Float[Array, "S G"]:
        """Return the mean for each of `n_spots` spots."""
        return np.tile(self.mean, (n_spots, 1))


class ColorRidge:
    """Ridge regression on standardized features, its strength chosen inside the training spots.

    One alpha serves all genes. It is the one with the highest correlation on held-out training spots: per gene, over the
    spots of a held-out group, then averaged over genes and groups, as on a leaderboard. Groups are held out one after
    the other; a single group is cut into five blocks of consecutive spots.

    Attributes:
        alpha: The strength chosen.
        scores: Held-out mean r of each strength; NaN if no gene varies in any held-out group.
    """

    def __init__(self, alphas: Sequence[float] = (0.1, 1.0, 10.0, 100.0, 1000.0, 10000.0)) -> None:
        if not alphas or min(alphas) <= 0:
            raise ModelError(f"the strengths of a ridge must be above 0, got model.alphas = {list(alphas)}")
        self.alphas = tuple(sorted(alphas))

    def fit(self, features: Float[Array, "S D"], expression: Float[Array, "S G"], groups: Shaped[Array, "S"]) -> "ColorRidge":
        """Choose alpha, then fit all training spots with it.

        Args:
            features: As `color_features` gives them.
            expression: Of the training spots.
            groups: Patient (or section) of each spot.

        Raises:
            ModelError: Fewer than two spots, or values that are not finite.
        """
        if len(features) < 2 or not (np.isfinite(features).all() and np.isfinite(expression).all()):
            raise ModelError(f"the color ridge needs at least 2 training spots and finite values, got {len(features)} spots")
        rows = []
        for held_out in _held_out(groups):
            predicted = (
                _fit(features[~held_out], expression[~held_out], alpha).predict(features[held_out]) for alpha in self.alphas
            )
            rows.append([_mean_pearson(values, expression[held_out]) for values in predicted])
        table = np.array(rows)
        defined = np.isfinite(table).all(axis=1)
        scores = table[defined].mean(axis=0) if defined.any() else np.full(len(self.alphas), np.nan)
        self.scores = dict(zip(self.alphas, scores.tolist(), strict=True))
        # of equal scores the strongest wins, and without any score the strongest as well
        best = len(scores) - 1 - int(np.argmax(np.nan_to_num(scores[::-1])))
        self.alpha = self.alphas[best]
        self._model = _fit(features, expression, self.alpha)
        return self

    def predict(self, features: Float[Array, "S D"]) -> Float[Array, "S G"]:
        """Return the expression of spots."""
        predicted: Array = self._model.predict(features)
        return predicted.reshape(len(features), -1)


def _fit(features: Array, expression: Array, alpha: float) -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    # svd: colors at neighboring radii are nearly collinear, which the other solvers warn of
    return make_pipeline(StandardScaler(), Ridge(alpha=alpha, solver="svd")).fit(features, expression)


def _held_out(groups: Shaped[Array, "S"]) -> Iterator[Bool[Array, "S"]]:
    names = np.unique(groups)
    if len(names) > 1:
        yield from (groups == name for name in names)
        return
    block: Int[Array, "S"] = np.arange(len(groups)) * min(N_BLOCKS, len(groups)) // len(groups)
    yield from (block == index for index in np.unique(block))


def _mean_pearson(predicted: Float[Array, "S G"], measured: Float[Array, "S G"]) -> float:
    x, y = predicted - predicted.mean(axis=0), measured - measured.mean(axis=0)
    varies = np.ptp(measured, axis=0) > 0
    if not varies.any():
        return float("nan")
    scale = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    r = np.divide((x * y).sum(axis=0), scale, out=np.zeros(len(scale)), where=scale > 0)
    return float(r[varies].mean())
