"""Survival beyond one number: risk groups and their curves, hazard ratios, and the scores at fixed times.

Curves, log-rank tests and hazard ratios are of one cross-validation, the first seed and partition: patients of several would
be counted again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd
from jaxtyping import Bool

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.slides.hazard_ratio import hazard_ratio
from stexpr.evaluate.slides.heads import CrossValidation, HeadLine
from stexpr.evaluate.slides.held_targets import TestedTarget
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.kaplan_meier import kaplan_meier
from stexpr.evaluate.slides.logrank import log_rank
from stexpr.evaluate.slides.measures import horizon_scores
from stexpr.types import Progress, silent

__all__ = ["GROUPS", "SurvivalTables", "survival_tables"]

GROUPS: Final = ("low risk", "high risk")
MOST_LEVELS: Final = 6
"""A covariate with more levels than these is no group of patients, and not adjusted for."""
AT_RISK_TIMES: Final = 6


@dataclass(frozen=True)
class SurvivalTables:
    """Survival of the patients as heads part them.

    Attributes:
        tests: By head and target: `model`, `target`, `n_low`, `n_high`, `median_low`, `median_high` (NaN where a curve stays
            above one half), `log_rank_p`, `hazard_ratio` per SD with `hr_low`, `hr_high`, `hr_p`, the same adjusted
            (`adjusted_…`), `adjusted_for`, `adjusted_patients` (with no covariate missing) and `reason` (what is undefined and
            why; else empty).
        curves: By head, target and group: `time`, `survival`, `low`, `high`, `at_risk`, `events`, `censored`; the first row is
            time 0.
        at_risk: By head, target, group and `time`: `at_risk`, for the table below a plot.
        horizons: By head, target, `fold` and `time`: `auc`, `brier`, `reason`.
    """

    tests: pd.DataFrame
    curves: pd.DataFrame
    at_risk: pd.DataFrame
    horizons: pd.DataFrame


def survival_tables(
    lines: Sequence[HeadLine], targets: pd.DataFrame, covariates: Sequence[str], progress: Progress = silent
) -> SurvivalTables:
    """Part patients by their heads, and describe the survival of the parts.

    Args:
        lines: The heads.
        targets: As `target_table` makes it; targets that were not tested are left out.
        covariates: Columns of the patients to adjust for, where a patient's table has them.
        progress: Shows the heads.
    """
    asked = targets[(targets["target_kind"] == "survival") & (targets["n_folds"] > 0)]
    tests, curves, at_risk, horizons = [], [], [], []
    for line in progress(lines if len(asked) else [], "survival", len(lines)):
        for name in asked.loc[asked["model"] == line.label, "target"]:
            identity = {"model": line.label, "target": str(name)}
            validation = line.validations[0]
            target = line.tested(str(name))[0]
            high, why = _groups(target)
            found, parts, table = _curves(target, high)
            tests.append({**identity, **found, **_tested(target, high, why, validation, covariates)})
            curves += [{**identity, **row} for row in parts]
            at_risk += [{**identity, **row} for row in table]
            for fold, time, auc, brier, reason in horizon_scores(target)[1]:
                horizons.append({**identity, "fold": fold, "time": time, "auc": auc, "brier": brier, "reason": reason})
    return SurvivalTables(*(pd.DataFrame(rows) for rows in (tests, curves, at_risk, horizons)))


def _groups(target: TestedTarget) -> tuple[Bool[Array, "P"] | None, str]:
    """Call patients at high risk by their fold's threshold, which comes from its training patients."""
    lacking = [fold for fold, fit in target.fits.items() if fit.info.threshold is None]
    if lacking:
        return None, f"no risk groups: fold {', '.join(lacking)} has no threshold from training"
    high = np.zeros(len(target), dtype=bool)
    for fold, rows in target.held_out.rows.items():
        high[rows] = target.value[rows] > target.fits[fold].info.threshold
    if high.all() or not high.any():
        return None, f"no risk groups: all {len(high)} patients are on one side of the threshold"
    return high, ""


def _curves(
    target: TestedTarget, high: Bool[Array, "P"] | None
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    found: dict[str, Any] = {"n_low": np.nan, "n_high": np.nan, "median_low": np.nan, "median_high": np.nan}
    rows: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    if high is None:
        return found, rows, table
    time, event = target.truth
    ticks = _ticks(float(time.max()))
    for group, side, own in zip(GROUPS, ("low", "high"), (~high, high), strict=True):
        curve = kaplan_meier(time[own], event[own])
        found[f"n_{side}"], found[f"median_{side}"] = int(own.sum()), curve.median
        start = {"time": 0.0, "survival": 1.0, "low": 1.0, "high": 1.0, "at_risk": int(own.sum()), "events": 0, "censored": 0}
        steps = pd.DataFrame({**vars(curve.table), "survival": curve.survival, "low": curve.low, "high": curve.high})
        rows += [{"group": group, **start}, *({"group": group, **step} for step in _records(steps[list(start)]))]
        table += [
            {"group": group, "time": tick, "at_risk": int(n)} for tick, n in zip(ticks, curve.at_risk(ticks), strict=True)
        ]
    return found, rows, table


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]


def _ticks(last: float) -> Array:
    """Round times from 0 on, about six."""
    rough = last / (AT_RISK_TIMES - 1)
    scale = 10.0 ** np.floor(np.log10(rough))
    step = scale * next(factor for factor in (1, 2, 2.5, 5, 10) if factor * scale >= rough)
    return np.arange(0, last + step / 1e6, step)


def _tested(
    target: TestedTarget, high: Bool[Array, "P"] | None, why: str, validation: CrossValidation, covariates: Sequence[str]
) -> dict[str, Any]:
    (time, event), reasons = target.truth, [why] if why else []
    row: dict[str, Any] = {"log_rank_p": np.nan}
    if high is not None:
        names = np.where(high, GROUPS[1], GROUPS[0]).tolist()
        try:
            row["log_rank_p"] = log_rank(time, event, names, target.held_out.folds).p
        except MetricError as error:
            reasons.append(str(error))
    known, coded, left_out = _coded(validation.patients.loc[list(target.held_out.patients)], covariates)
    reasons += left_out
    for prefix, rows, columns in (("", np.arange(len(target)), None), ("adjusted_", known, coded)):
        keys = [f"{prefix}{key}" for key in ("hazard_ratio", "hr_low", "hr_high", "hr_p")]
        row |= dict.fromkeys(keys, np.nan)
        if prefix and (coded is None or not len(rows)):
            continue
        try:
            ratio = hazard_ratio(target.value[rows], time[rows], event[rows], target.held_out.only(rows), columns)
            row |= dict(zip(keys, (ratio.ratio, ratio.low, ratio.high, ratio.p), strict=True))
        except (MetricError, DataError) as error:
            reasons.append(f"{'adjusted: ' if prefix else ''}{error}")
    row["adjusted_for"] = "" if coded is None else ", ".join(map(str, coded.columns))
    row["adjusted_patients"] = 0 if coded is None else len(known)
    return {**row, "reason": "; ".join(reasons)}


def _coded(patients: pd.DataFrame, covariates: Sequence[str]) -> tuple[Array, pd.DataFrame | None, list[str]]:
    """Turn covariates into numbers, levels into 0 and 1 against the most frequent; leave out patients with missing cells."""
    asked = [name for name in covariates if name in patients]
    table = patients[asked].replace("", np.nan)
    kept, left_out = dict[str, pd.Series](), list[str]()
    for name in asked:
        levels = table[name].dropna().unique()
        if len(levels) < 2 or (_numbers(table[name]) is None and len(levels) > MOST_LEVELS):
            left_out.append(f"not adjusted for {name}, which has {len(levels)} levels")
        else:
            kept[name] = table[name]
    if not kept:
        return np.zeros(0, dtype=np.int64), None, left_out
    complete = pd.DataFrame(kept)
    known = np.flatnonzero(complete.notna().all(axis=1).to_numpy())
    columns: dict[str, Array] = {}
    for name in kept:
        column = complete[name].iloc[known]
        numbers = _numbers(column)
        if numbers is not None:
            columns[name] = numbers
            continue
        usual = column.value_counts().index[0]
        for level in sorted(set(column) - {usual}):
            columns[f"{name} {level}"] = (column == level).to_numpy(dtype=np.float64)
    return known, pd.DataFrame(columns), left_out


def _numbers(column: "pd.Series[Any]") -> Array | None:
    numbers = pd.to_numeric(column, errors="coerce")
    return numbers.to_numpy(dtype=np.float64) if numbers.notna().equals(column.notna()) else None
