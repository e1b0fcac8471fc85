"""Ridge regression of expression on features (colors, places, those of a frozen encoder), its penalty chosen over patients."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64

from stexpr.errors import ModelError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Linear(NamedTuple):
    """A linear map of features: `features @ weight.T + bias`."""

    weight: Float64[Array, "G D"]
    bias: Float64[Array, "G"]


class GroupedRidge:
    """Ridge regression on standardized features, its penalty chosen on training spots by leaving groups out.

    One penalty serves all genes: the one with the least squared error on left-out groups, each gene weighted by its
    variance. With a single group, contiguous runs of its spots take the place of groups. Scaling and components are fitted
    anew without each group.

    Args:
        alphas: Penalties to choose from.
        components: Principal components of the standardized features that are regressed on, as many as there are at most; None
            regresses on the features.
        seed: Of the components, which are found by random projection where the features are many.

    Attributes:
        alpha: The penalty chosen, after `fit`.

    Raises:
        ModelError: There is no penalty, or one below 0.
    """

    N_RUNS = 5

    def __init__(self, alphas: Sequence[float], *, components: int | None = None, seed: int = 0) -> None:
        if not alphas or min(alphas) < 0:
            raise ModelError(f"ridge regression needs penalties of at least 0 to choose from, not {list(alphas)}")
        self.alphas = tuple(alphas)
        self.components = components
        self.seed = seed
        self.alpha = float("nan")
        self._front: list[Any] = []
        self._ridge: Any = None

    def fit(
        self, features: Float32[Array, "S D"], expression: Float[Array, "S G"], groups: Sequence[str] | Array
    ) -> "GroupedRidge":
        """Choose the penalty and fit on all spots given, training spots only.

        Args:
            features: Of each spot.
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
            front, inside = self._fitted_front(wide[~held_out])
            outside = _through(front, wide[held_out])
            for i, alpha in enumerate(self.alphas):
                model = _ridge(alpha).fit(inside, expression[~held_out])
                # scikit-learn drops the axis of a single gene, and the difference would spread over all pairs of spots
                predicted = model.predict(outside).reshape(-1, expression.shape[1])
                errors[i] += np.square((predicted - expression[held_out]) / scale).sum()
        self.alpha = self.alphas[int(errors.argmin())]
        self._front, inside = self._fitted_front(wide)
        self._ridge = _ridge(self.alpha).fit(inside, expression)
        return self

    def predict(self, features: Float32[Array, "S D"]) -> Float32[Array, "S G"]:
        """Predict expression.

        Raises:
            ModelError: It was not fitted.
        """
        self._check_fitted()
        predicted = self._ridge.predict(_through(self._front, features.astype(np.float64)))
        return np.asarray(predicted, dtype=np.float32).reshape(len(features), -1)

    def linear(self) -> Linear:
        """Return the same prediction as one linear map of the features, scaling and components folded in.

        Raises:
            ModelError: It was not fitted.
        """
        self._check_fitted()
        weight = np.atleast_2d(np.asarray(self._ridge.coef_, dtype=np.float64))
        bias = np.atleast_1d(np.asarray(self._ridge.intercept_, dtype=np.float64))
        scaler, *pca = self._front
        for one in pca:
            weight = weight @ one.components_
            bias = bias - weight @ one.mean_
        weight = weight / scaler.scale_
        return Linear(weight, bias - weight @ scaler.mean_)

    @property
    def n_components(self) -> int | None:
        """Components regressed on, after `fit`; None where these are the features."""
        return int(self._front[1].n_components_) if len(self._front) > 1 else None

    def _check_fitted(self) -> None:
        if self._ridge is None:
            raise ModelError("the ridge regression has to be fitted before it predicts")

    def _fitted_front(self, features: Float64[Array, "S D"]) -> tuple[list[Any], Float64[Array, "S K"]]:
        from sklearn.decomposition import PCA
        from sklearn.preprocessing import StandardScaler

        front: list[Any] = [StandardScaler()]
        features = front[0].fit_transform(features)
        n = min(self.components or 0, features.shape[1], len(features) - 1)
        if n and features.any():  # where no feature varies there are no components
            front.append(PCA(n_components=n, random_state=self.seed))
            features = front[1].fit_transform(features)
        return front, features

    def _held_out(self, groups: Array) -> Iterator[Bool[Array, "S"]]:
        names = list(dict.fromkeys(groups.tolist()))
        if len(names) > 1:
            yield from (groups == name for name in names)
            return
        for run in np.array_split(np.arange(len(groups)), min(self.N_RUNS, len(groups))):
            yield np.isin(np.arange(len(groups)), run)


def _through(front: Sequence[Any], features: Float64[Array, "S D"]) -> Float64[Array, "S K"]:
    for step in front:
        features = step.transform(features)
    return features


def _ridge(alpha: float) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=alpha)
