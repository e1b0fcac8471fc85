"""How much smaller the error gets when a model abstains where a patch is foreign to it.

Reference:
    El-Yaniv and Wiener, On the foundations of noise-free selective classification, JMLR 2010, for risk and coverage; Geifman et
    al., Bias-reduced uncertainty estimation for deep neural classifiers, ICLR 2019, for the area under the curve.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, Float64

from stexpr.errors import DataError, MetricError

__all__ = ["RiskCoverage", "risk_coverage"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_STEPS = 20


@dataclass(frozen=True)
class RiskCoverage:
    """Mean error of the spots kept, against the share of spots kept.

    Each patient's spots are ranked by themselves, the least novel kept first. Abstaining at random keeps the risk where it is
    at full coverage, so that is the baseline of every curve.

    Attributes:
        coverage: Shares of spots kept, rising to 1.
        patients: In order of their names.
        n_spots: Of each patient.
        risk: Mean error of the spots kept of each patient, in the unit of the error.
        area: Mean risk of each patient over all coverages, those between the grid included.
    """

    coverage: Float64[Array, "C"]
    patients: tuple[str, ...]
    n_spots: tuple[int, ...]
    risk: Float64[Array, "P C"]
    area: Float64[Array, "P"]

    @property
    def mean_risk(self) -> Float64[Array, "C"]:
        """Curve over patients, each of the same weight."""
        mean: Array = self.risk.mean(axis=0)
        return mean

    @property
    def random(self) -> Float64[Array, "P"]:
        """Risk, and area, of each patient when as many spots are left out at random."""
        return self.risk[:, -1]

    @property
    def gain(self) -> float:
        """Share of the area that abstaining by novelty saves against abstaining at random, over patients.

        Returns:
            At most 1; 0 where novelty says nothing about the error, negative where it misleads; NaN where there is no error.
        """
        random = float(self.random.mean())
        return 1 - float(self.area.mean()) / random if random > 0 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return {
            "coverage": self.coverage.tolist(),
            "patients": list(self.patients),
            "n_spots": list(self.n_spots),
            "risk": self.risk.tolist(),
            "area": self.area.tolist(),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RiskCoverage":
        """Read what `to_dict` wrote.

        Raises:
            DataError: It is not that.
        """
        try:
            coverage, risk, area = (np.asarray(values[key], dtype=np.float64) for key in ("coverage", "risk", "area"))
            patients, n_spots = tuple(map(str, values["patients"])), tuple(map(int, values["n_spots"]))
        except (KeyError, TypeError, ValueError) as err:
            raise DataError(f"this is no risk-coverage curve: {err!r}") from err
        n = len(patients)
        if not n or risk.shape != (n, *coverage.shape) or area.shape != (n,) or len(n_spots) != n or coverage[-1:] != [1.0]:
            raise DataError("this is no risk-coverage curve: its arrays do not fit together")
        return cls(coverage, patients, n_spots, risk, area)


def risk_coverage(novelty: Float[Array, "S"], error: Float[Array, "S"], patients: Array) -> RiskCoverage:
    """Measure what abstaining by novelty is worth on spots the model was not trained on.

    Spots of the same novelty are left out together in proportion, so the order of the spots does not matter.

    Args:
        novelty: Of each spot's patch, as the model gives it.
        error: Of each spot's prediction, such as the mean squared error over genes.
        patients: Of each spot, its patient.

    Returns:
        A curve for each patient at coverages of 5, 10 … 100 %.

    Raises:
        MetricError: No spot, arrays of unlike length, or a value that is not finite.

    Example:
        >>> import numpy as np
        >>> curve = risk_coverage(np.array([0.2, 0.4, 0.6, 2.0]), np.array([1.0, 1.0, 1.0, 5.0]), np.array(["a"] * 4))
        >>> curve.risk[0, [9, 14, 19]].tolist()
        [1.0, 1.0, 2.0]
    """
    if not len(novelty) == len(error) == len(patients) or not len(novelty):
        raise MetricError(
            f"a risk-coverage curve needs a novelty, an error and a patient for each spot, got {len(novelty)}, {len(error)} "
            f"and {len(patients)}"
        )
    if not (np.isfinite(novelty).all() and np.isfinite(error).all()):
        raise MetricError("a novelty or an error is not finite; leave such spots out, and say how many")
    coverage = np.arange(1, _STEPS + 1) / _STEPS
    names = sorted({str(patient) for patient in patients})
    of = np.array([str(patient) for patient in patients])
    curves = [_curve(novelty[of == name], error[of == name], coverage) for name in names]
    return RiskCoverage(
        coverage,
        tuple(names),
        tuple(int((of == name).sum()) for name in names),
        np.stack([risk for risk, _ in curves]),
        np.array([area for _, area in curves]),
    )


def _curve(
    novelty: Float[Array, "S"], error: Float[Array, "S"], coverage: Float64[Array, "C"]
) -> tuple[Float64[Array, "C"], float]:
    """Return the risk at each coverage, and its mean over all coverages from 0 to 1."""
    _, group, sizes = np.unique(novelty, return_inverse=True, return_counts=True)
    of_group = np.bincount(group, weights=error) / sizes
    # Kept so far and their summed error, from 0, at the end of each group of equal novelty: straight lines between.
    kept = np.concatenate([[0.0], np.cumsum(sizes) / len(error)])
    summed = np.concatenate([[0.0], np.cumsum(of_group * sizes) / len(error)])
    risk = np.interp(coverage, kept, summed) / coverage
    # On such a line summed(c) = a + b c, so the risk is a / c + b, whose integral is known; the first line has a = 0.
    offset = summed[:-1] - of_group * kept[:-1]
    offset[0] = 0.0
    logs = np.log(kept[1:] / np.maximum(kept[:-1], kept[1]))
    return risk, float((offset * logs + of_group * np.diff(kept)).sum())
