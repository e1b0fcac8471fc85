"""How well the chances of several classes, with or without an order, fit the classes of patients."""

import numpy as np
from jaxtyping import Float, Float64, Int

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.agreement import spearman
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.inputs import Array, check_finite

__all__ = ["balanced_accuracy", "expected_place", "kappa", "macro_auroc", "place_spearman", "quadratic_kappa"]


def macro_auroc(chances: Float[Array, "P K"], place: Int[Array, "P"]) -> float:
    """Average the AUROC of each class against all others, classes alike whatever their size.

    A class without a patient here has no AUROC and is left out of the mean, for every model alike, since labels decide it.

    Args:
        chances: Of each class.
        place: Of the true class, from 0.

    Returns:
        In [0, 1]; .5 is chance.

    Raises:
        MetricError: Fewer than two classes have a patient.
        DataError: A chance that is not finite, or a place without a column.

    Example:
        >>> macro_auroc(np.array([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]), np.array([0, 1, 2]))
        1.0
    """
    _check(chances, place)
    present = np.unique(place)
    if len(present) < 2:
        raise MetricError(f"{len(present)} of {chances.shape[1]} classes have a patient; at least two are needed")
    return float(np.mean([auroc(chances[:, k], place == k) for k in present]))


def balanced_accuracy(chances: Float[Array, "P K"], place: Int[Array, "P"]) -> float:
    """Average over classes the share of their patients for whom the class has the highest chance.

    Of equal chances the first class is taken. A class without a patient here is left out of the mean.

    Raises:
        MetricError: Fewer than two classes have a patient.
        DataError: What `macro_auroc` refuses.
    """
    _check(chances, place)
    present = np.unique(place)
    if len(present) < 2:
        raise MetricError(f"{len(present)} of {chances.shape[1]} classes have a patient; at least two are needed")
    right = chances.argmax(axis=1) == place
    return float(np.mean([right[place == k].mean() for k in present]))


def kappa(chances: Float[Array, "P K"], place: Int[Array, "P"]) -> float:
    """Give Cohen's kappa of the class with the highest chance: agreement beyond what the shares of classes bring about.

    Returns:
        At most 1; 0 where agreement is that of chance, as for a head that always says one class.

    Raises:
        MetricError: Fewer than two classes have a patient.
        DataError: What `macro_auroc` refuses.

    Reference:
        Cohen (1960), Educational and Psychological Measurement 20:37-46.
    """
    return _weighted_kappa(chances.argmax(axis=1), place, chances, power=0)


def quadratic_kappa(chances: Float[Array, "P K"], place: Int[Array, "P"]) -> float:
    """Give Cohen's kappa with errors weighted by the square of their distance in the order of classes.

    The predicted class is the median: the first at which the chances, lowest class first, add up to one half.

    Raises:
        MetricError: Fewer than two classes have a patient.
        DataError: What `macro_auroc` refuses.

    Reference:
        Cohen (1968), Psychological Bulletin 70:213-220.

    Example:
        >>> chances = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.3, 0.6]])
        >>> quadratic_kappa(chances, np.array([0, 1, 2]))
        1.0
    """
    median = (np.cumsum(chances.astype(np.float64), axis=1) < 0.5 - 1e-9).sum(axis=1).clip(max=chances.shape[1] - 1)
    return _weighted_kappa(median, place, chances, power=2)


def expected_place(chances: Float[Array, "P K"]) -> Float64[Array, "P"]:
    """Return the mean place of a patient's class: the one number that ranks patients by an ordinal prediction."""
    known = chances.astype(np.float64)
    return np.asarray(known @ np.arange(chances.shape[1]) / known.sum(axis=1))


def place_spearman(chances: Float[Array, "P K"], place: Int[Array, "P"]) -> float:
    """Correlate ranks of the expected place with those of the true one; NaN where the prediction is constant.

    Raises:
        MetricError: All patients are of one class, or what `spearman` refuses.
        DataError: What `macro_auroc` refuses.
    """
    _check(chances, place)
    return spearman(expected_place(chances), place.astype(np.float64))


def _weighted_kappa(said: Int[Array, "P"], place: Int[Array, "P"], chances: Float[Array, "P K"], power: int) -> float:
    _check(chances, place)
    if len(np.unique(place)) < 2:
        raise MetricError(f"all {len(place)} patients are of one class; agreement beyond chance needs two")
    k = chances.shape[1]
    seen = np.bincount(place * k + said, minlength=k * k).reshape(k, k) / len(place)
    distance = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    weights = np.where(distance > 0, distance**power, 0)
    by_chance = float((weights * np.outer(seen.sum(axis=1), seen.sum(axis=0))).sum())
    return 1 - float((weights * seen).sum()) / by_chance


def _check(chances: Float[Array, "P K"], place: Int[Array, "P"]) -> None:
    check_finite("the chances of classes", chances, place)
    if len(place) and not (place.min() >= 0 and place.max() < chances.shape[1]):
        raise DataError(
            f"places of classes reach from {place.min()} to {place.max()}, but there are {chances.shape[1]} classes"
        )
