"""Regression of expression components on descriptors, in closed form, with a penalty of its own for each component.

Spots are few and genes many, and most of what varies between spots is shared by many genes. So the principal components of
training expression are predicted instead of the genes: a component that the image tells keeps its strength, one that it does
not tell is shrunk away, and with it the noise of 250 separate regressions.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64

from stexpr.errors import ModelError
from stexpr.models.descriptors import Group

__all__ = ["GAMMA", "VIEWS", "ComponentMap", "View", "component_axes", "fit_view", "gaussians", "joined"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Kernel: TypeAlias = Literal["linear", "gaussian"]

GAMMA: Final = 0.2
"""Width of the Gaussian kernel: exp(-GAMMA x mean squared difference of standardized descriptors)."""
PENALTIES: Final = tuple(float(10**power) for power in np.arange(0, 6.5, 0.5))
_NEGLIGIBLE: Final = 1e-6
"""Directions of the kernel weaker than this share of the strongest are rounding noise in float32."""


@dataclass(frozen=True)
class View:
    """Which descriptors a regression reads, and how.

    Attributes:
        groups: Of `models.descriptors`.
        kernel: `linear`, or `gaussian` about the training spots.
    """

    groups: tuple[Group, ...]
    kernel: Kernel


VIEWS: Final = (View(("color",), "linear"), View(("color",), "gaussian"), View(("color", "texture"), "gaussian"))
"""Predictions of these are averaged: the line goes on where the Gaussians, away from all training spots, know nothing."""


class ComponentMap(NamedTuple):
    """A fitted view: `phi((x - center) / scale) @ weight + bias`, phi the identity or Gaussians about the landmarks.

    Attributes:
        center: Mean of each descriptor over the training spots.
        scale: Its standard deviation.
        landmarks: Standardized descriptors of the spots that Gaussians are about; none for a linear view.
        weight: To the components.
        bias: Of the components.
        penalties: Chosen, one for each component.
        held_out: Components of each training spot, predicted without its group.
    """

    center: Float64[Array, "D"]
    scale: Float64[Array, "D"]
    landmarks: Float64[Array, "M D"]
    weight: Float64[Array, "P C"]
    bias: Float64[Array, "C"]
    penalties: Float64[Array, "C"]
    held_out: Float64[Array, "S C"]


def component_axes(targets: Float[Array, "S G"], n: int) -> Float64[Array, "C G"]:
    """Return the principal axes of standardized expression, at most `n`, strongest first.

    Their signs are fixed by the largest entry, so the same spots give the same axes on every machine.
    """
    _, _, axes = np.linalg.svd(targets.astype(np.float64), full_matrices=False)
    axes = axes[:n]
    largest = axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)]
    signed: Array = axes * np.sign(largest)[:, None]
    return signed


def fit_view(
    kernel: Kernel,
    descriptors: Float[Array, "S D"],
    components: Float[Array, "S C"],
    groups: Sequence[str] | Array,
    *,
    landmarks: int = 2000,
    seed: int = 0,
    penalties: Sequence[float] = PENALTIES,
) -> ComponentMap:
    """Choose a penalty for each component by leaving groups out, and fit on all spots given, training spots only.

    Args:
        kernel: `linear` or `gaussian`.
        descriptors: Of each spot.
        components: Of each spot's standardized expression.
        groups: Patient, section or block of each spot, left out in turn.
        landmarks: Most spots that Gaussians are about; of more a random part is taken (Nystrom's approximation).
        seed: Chooses that part.
        penalties: To choose from.

    Raises:
        ModelError: Fewer than two groups, or a value that is not finite.

    Reference:
        Williams & Seeger, Using the Nystrom Method to Speed Up Kernel Machines, NeurIPS 2000.
    """
    names = np.asarray(groups)
    if len(set(names.tolist())) < 2:
        raise ModelError("a penalty is chosen by leaving groups out, and all spots are of one group")
    wide, wanted = descriptors.astype(np.float64), components.astype(np.float64)
    if not np.isfinite(wide).all() or not np.isfinite(wanted).all():
        raise ModelError("descriptors and components have to be finite")
    held_out = np.empty((len(penalties), *wanted.shape))
    for away in _each(names):
        space = _Space.of(kernel, wide[~away], landmarks, seed)
        path = _Path.of(space.features(wide[~away]), wanted[~away])
        outside = space.features(wide[away])
        for i, penalty in enumerate(penalties):
            held_out[i][away] = path.predict(outside, np.full(wanted.shape[1], penalty))
    chosen = np.square(held_out - wanted).sum(axis=1).argmin(axis=0)  # (C,)
    best = np.asarray(penalties, dtype=np.float64)[chosen]
    space = _Space.of(kernel, wide, landmarks, seed)
    path = _Path.of(space.features(wide), wanted)
    coefficients, bias = path.solution(best)
    each = np.arange(wanted.shape[1])
    return ComponentMap(
        space.center, space.scale, space.landmarks, space.back @ coefficients, bias, best, held_out[chosen, :, each].T
    )


class _Space(NamedTuple):
    """Where a view regresses: standardized descriptors, or the span of Gaussians about landmarks."""

    center: Float64[Array, "D"]
    scale: Float64[Array, "D"]
    landmarks: Float64[Array, "M D"]
    back: Float64[Array, "P K"]
    """From the values of phi to orthonormal coordinates."""

    @classmethod
    def of(cls, kernel: Kernel, descriptors: Float64[Array, "S D"], n_landmarks: int, seed: int) -> "_Space":
        center, sd = descriptors.mean(axis=0), descriptors.std(axis=0)
        scale = np.where(sd > 1e-9 * np.maximum(1, np.abs(center)), sd, 1.0)  # what never varies says nothing
        n, width = descriptors.shape
        if kernel == "linear":
            return cls(center, scale, np.empty((0, width)), np.eye(width))
        rows = np.arange(n)
        if n > n_landmarks:
            rows = np.sort(np.random.default_rng(seed).choice(n, n_landmarks, replace=False))
        landmarks = (descriptors[rows] - center) / scale
        strength, axes = np.linalg.eigh(gaussians(landmarks, landmarks))
        kept = strength > _NEGLIGIBLE * strength[-1]
        return cls(center, scale, landmarks, axes[:, kept] * np.sqrt(width / strength[kept]))

    def features(self, descriptors: Float64[Array, "S D"]) -> Float64[Array, "S K"]:
        standardized = (descriptors - self.center) / self.scale
        return standardized if not len(self.landmarks) else gaussians(standardized, self.landmarks) @ self.back


def gaussians(a: Float64[Array, "S D"], b: Float64[Array, "M D"]) -> Float64[Array, "S M"]:
    """Return the Gaussian kernel between standardized descriptors."""
    square = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1) - 2 * a @ b.T
    kernel: Array = np.exp(-GAMMA / a.shape[1] * np.maximum(square, 0))
    return kernel


class _Path(NamedTuple):
    """Ridge regression at every penalty from one decomposition."""

    feature_mean: Float64[Array, "K"]
    target_mean: Float64[Array, "C"]
    singular: Float64[Array, "k"]
    right: Float64[Array, "k K"]
    projected: Float64[Array, "k C"]

    @classmethod
    def of(cls, features: Float64[Array, "S K"], targets: Float64[Array, "S C"]) -> "_Path":
        feature_mean, target_mean = features.mean(axis=0), targets.mean(axis=0)
        left, singular, right = np.linalg.svd(features - feature_mean, full_matrices=False)
        return cls(feature_mean, target_mean, singular, right, left.T @ (targets - target_mean))

    def solution(self, penalties: Float64[Array, "C"]) -> tuple[Float64[Array, "K C"], Float64[Array, "C"]]:
        shrunk = self.singular[:, None] / (np.square(self.singular)[:, None] + penalties)
        weight = self.right.T @ (shrunk * self.projected)
        return weight, self.target_mean - self.feature_mean @ weight

    def predict(self, features: Float64[Array, "S K"], penalties: Float64[Array, "C"]) -> Float64[Array, "S C"]:
        weight, bias = self.solution(penalties)
        predicted: Array = features @ weight + bias
        return predicted


def _each(groups: Array) -> Iterator[Bool[Array, "S"]]:
    yield from (groups == name for name in dict.fromkeys(groups.tolist()))


def joined(described: Mapping[Group, Float[Array, "S _"]], view: View) -> Float[Array, "S D"]:
    """Put the descriptors that a view reads beside each other."""
    parts: Array = np.concatenate([described[group] for group in view.groups], axis=1)
    return parts
