"""How much the hazard rises with a prediction, alone or beside what the clinic knows already."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.metrics import constant_per_gene
from stexpr.evaluate.slides.held_out import HeldOut, check_arrays
from stexpr.evaluate.slides.inputs import Array, check_survival

__all__ = ["HazardRatio", "hazard_ratio"]

NO_MAXIMUM = "no hazard ratio: the likelihood has no maximum, since a group of patients has no event"
LARGEST_SE = 10.0
"""A standard error of a log hazard ratio per SD beyond this (e^10 either way) says that the likelihood has no maximum."""


@dataclass(frozen=True)
class HazardRatio:
    """Factor on the hazard per standard deviation of the prediction, within folds.

    Attributes:
        ratio: Above 1 where a higher prediction means an earlier event.
        low: 95 % bound (Wald).
        high: Likewise.
        p: Two-sided (Wald).
        n_patients: In the model.
        n_events: Among them.
        adjusted_for: Covariates.
        covariates: Ratio of each covariate, per unit as given.
    """

    ratio: float
    low: float
    high: float
    p: float
    n_patients: int
    n_events: int
    adjusted_for: tuple[str, ...]
    covariates: dict[str, float]


def hazard_ratio(
    log_hazard: Float[Array, "P"],
    time: Float[Array, "P"],
    event: Bool[Array, "P"],
    held_out: HeldOut,
    covariates: pd.DataFrame | None = None,
) -> HazardRatio:
    """Fit a Cox model stratified by fold (Efron's ties) to the prediction, in standard deviations of its fold.

    The interval is conditional on the trained models, and takes patients of different folds as independent.

    Args:
        log_hazard: Predictions on held-out patients; higher is riskier.
        time: To the event, or to the last time a patient was seen.
        event: True where the event was observed.
        held_out: Patients and folds of the rows.
        covariates: Numbers by patient (age, stage as 0 and 1 by level), in the same order, none missing.

    Raises:
        MetricError: No event, a prediction constant within all folds, columns that determine each other, or a likelihood
            without maximum (some group has no event).
        DataError: A covariate that is missing or no number, or values that `harrell_c` refuses.
    """
    from statsmodels.duration.hazard_regression import PHReg
    from statsmodels.tools.sm_exceptions import ModelWarning

    check_arrays(held_out, log_hazard, time, event)
    check_survival(time, event)
    names, known = _known(covariates, len(held_out))
    design = np.column_stack([_per_sd(log_hazard, held_out), known])
    within = _centered(design, held_out)
    if not event.any() or np.linalg.matrix_rank(within / np.maximum(within.std(axis=0), 1e-300)) < design.shape[1]:
        raise MetricError(
            f"no hazard ratio: {int(event.sum())} events among {len(event)} patients; within folds prediction and covariates "
            f"({', '.join(names) or 'none'}) must vary and not determine each other"
        )
    model = PHReg(time, within, status=event.astype(int), ties="efron", strata=np.asarray(held_out.folds))
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("error", ModelWarning)
        try:
            fitted = model.fit(disp=0)
        except ModelWarning as warning:
            raise MetricError(NO_MAXIMUM) from warning
    beta, se = fitted.params, fitted.bse
    if not (np.isfinite(beta).all() and np.isfinite(se).all()) or se[0] > LARGEST_SE or abs(beta[0]) > LARGEST_SE:
        raise MetricError(NO_MAXIMUM)
    low, high = np.exp(fitted.conf_int()[0])
    ratios = dict(zip(names, np.exp(beta[1:]).tolist(), strict=True))
    numbers = (float(np.exp(beta[0])), float(low), float(high), float(fitted.pvalues[0]))
    return HazardRatio(*numbers, len(event), int(event.sum()), names, ratios)


def _known(covariates: pd.DataFrame | None, n: int) -> tuple[tuple[str, ...], Float64[Array, "P K"]]:
    if covariates is None:
        return (), np.empty((n, 0))
    numbers = {str(name): pd.to_numeric(column, errors="coerce") for name, column in covariates.items()}
    columns = {name: column.to_numpy(dtype=np.float64, na_value=np.nan) for name, column in numbers.items()}
    wrong = [name for name, column in columns.items() if not np.isfinite(column).all()]
    if len(covariates) != n or wrong:
        raise DataError(
            f"covariates of {len(covariates)} patients for {n}; not numbers or missing in {', '.join(wrong) or 'none'}: code "
            "levels as 0 and 1, and leave out patients with missing values by name"
        )
    return tuple(columns), np.column_stack([np.empty((n, 0)), *columns.values()])


def _per_sd(values: Float[Array, "P"], held_out: HeldOut) -> Float64[Array, "P"]:
    scaled = _centered(values[:, None], held_out)[:, 0]
    for rows in held_out.rows.values():
        sd = scaled[rows].std(ddof=1) if len(rows) > 1 else 0.0
        scaled[rows] /= sd if sd > 0 else 1.0  # a fold of one value stays 0 and says nothing of the ratio
    return scaled


def _centered(values: Float[Array, "P K"], held_out: HeldOut) -> Float64[Array, "P K"]:
    centered = values.astype(np.float64)
    for rows in held_out.rows.values():
        within = values[rows]
        centered[rows] = np.where(constant_per_gene(within), 0.0, centered[rows] - centered[rows].mean(axis=0))
    return centered
