"""Prediction intervals calibrated on held-out patients.

A spot of a new patient is not exchangeable with the spots of another, but a patient is with other patients. So a score
counts for its patient: each of K patients holds 1/(K + 1) of the weight, shared by its spots, and the patient not yet
seen holds the last 1/(K + 1) at infinity. The quantile of that distribution covers a spot of a new patient at least as
often as asked, whatever the model and however alike the spots of one patient are. It needs K >= coverage / (1 - coverage)
patients: 9 for 90 %. With fewer, spots are pooled as if they were exchangeable, which holds for further spots of these
patients only.

Reference:
    Lee, Barber, Willett, Distribution-free inference with hierarchical data, arXiv:2306.06342; Dunn, Wasserman, Ramdas,
    Distribution-free prediction sets for two-layer hierarchical models, JASA 2023.
"""

import math
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Float, Float64

from stexpr.errors import MetricError
from stexpr.models.export.intervals import COVERAGES, IntervalLevel, PredictionIntervals

__all__ = ["PATIENTS_NEEDED", "fit_intervals", "patients_needed"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def patients_needed(coverage: float) -> int:
    """Return how many patients an interval of this coverage takes to hold for new ones.

    Example:
        >>> patients_needed(0.9), patients_needed(0.95)
        (9, 19)
    """
    return math.ceil(coverage / (1 - coverage) - 1e-9)


PATIENTS_NEEDED: Final = patients_needed(0.9)


def fit_intervals(
    residuals: Float[Array, "S G"],
    patients: Sequence[str] | Array,
    genes: Sequence[str],
    coverages: Sequence[float] = COVERAGES,
) -> PredictionIntervals:
    """Calibrate intervals of one half-width per gene.

    The residuals must be of predictions by models that were not trained on the spot's patient. A model that averages several
    such models errs no more, so the intervals are rather too wide around an ensemble.

    Args:
        residuals: Measured minus predicted expression of held-out spots; NaN where a gene was not predicted.
        patients: Of each spot.
        genes: In the order of the columns.
        coverages: Shares of measurements that shall lie inside.

    Returns:
        Valid for spots of new patients with `PATIENTS_NEEDED` patients or more; there, a coverage that needs more patients
        than a gene was predicted for has an infinite half-width. With fewer patients the level is `spot`.

    Raises:
        MetricError: No spot, or a coverage that is no share.
    """
    if not len(residuals) or not all(0 < coverage < 1 for coverage in coverages):
        raise MetricError(f"intervals need spots and coverages between 0 and 1, got {len(residuals)} spots, {list(coverages)}")
    _, of = np.unique(np.asarray(patients), return_inverse=True)
    n_patients = int(of.max()) + 1
    hierarchical = n_patients >= PATIENTS_NEEDED
    quantiles = _of_new_patients if hierarchical else _of_further_spots
    half = np.stack([quantiles(np.abs(column), of, coverages) for column in np.asarray(residuals, dtype=np.float64).T])
    level: IntervalLevel = "patient" if hierarchical else "spot"
    widths = half.astype(np.float32)
    return PredictionIntervals(tuple(genes), tuple(coverages), widths, level, n_patients, len(residuals))


def _of_new_patients(scores: Float64[Array, "S"], patients: Array, coverages: Sequence[float]) -> Float64[Array, "C"]:
    known = np.isfinite(scores)
    own, of = scores[known], patients[known]
    if not len(own):
        return np.full(len(coverages), np.nan)
    _, of, counts = np.unique(of, return_inverse=True, return_counts=True)
    order = np.argsort(own)
    weight = np.cumsum(1 / counts[of[order]]) / (len(counts) + 1)
    place = np.searchsorted(weight, np.asarray(coverages) - 1e-9)  # sums of weights miss a round share by a rounding error
    quantiles: Array = np.append(own[order], np.inf)[place]
    return quantiles


def _of_further_spots(scores: Float64[Array, "S"], patients: Array, coverages: Sequence[float]) -> Float64[Array, "C"]:
    own = np.sort(scores[np.isfinite(scores)])
    if not len(own):
        return np.full(len(coverages), np.nan)
    place = np.ceil((len(own) + 1) * np.asarray(coverages) - 1e-9).astype(int) - 1
    quantiles: Array = np.append(own, np.inf)[np.minimum(place, len(own))]
    return quantiles
