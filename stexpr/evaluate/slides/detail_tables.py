"""Beyond a head's score: what its probabilities mean, how its numbers agree, and in whom the score holds.

All of it is of one cross-validation, the first seed and partition: patients of several would be counted again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np
import pandas as pd

from stexpr.config.slides import SlideProtocol
from stexpr.errors import MetricError
from stexpr.evaluate.slides.agreement import bland_altman
from stexpr.evaluate.slides.calibration import calibration_error, reliability_curve
from stexpr.evaluate.slides.confounding import confounder_stratified_auroc
from stexpr.evaluate.slides.heads import HeadLine
from stexpr.evaluate.slides.held_targets import TestedTarget
from stexpr.evaluate.slides.measures import MEASURES
from stexpr.evaluate.slides.resampling import Draws
from stexpr.evaluate.slides.subgroups import MISSING, subgroup_table
from stexpr.evaluate.slides.target_table import label_strata
from stexpr.types import Progress, silent

__all__ = ["DetailTables", "detail_tables"]

PARTS: Final = 3
"""A column of numbers is cut into so many parts with equally many patients each."""
MOST_VALUES: Final = 8
"""Numbers with no more distinct values than these are groups as they are."""


@dataclass(frozen=True)
class DetailTables:
    """What stands beside the scores.

    Attributes:
        calibration: By head and binary target: `n_patients`, `temperature` (mean over folds, NaN where a fold has none),
            `ece_before` (of the head's own logits), `ece_after`, over all patients at once, `reason`.
        reliability: By head and binary target, in bins of probability, as `reliability_curve` gives them.
        agreement: By head and fraction or number, over all patients at once: `bias`, limits `low` and `high`, `slope`.
        points: By head, such target and `patient`: `fold`, `measured`, `predicted`.
        confounders: By head, binary target and `confounder`: AUROC `plain` and `stratified`, `null_mean`, `p`, `n_pairs`,
            `share`, `without_pair` (patients by stratum, in words), `reason`.
        subgroups: By head and target, as `subgroup_table` gives them.
    """

    calibration: pd.DataFrame
    reliability: pd.DataFrame
    agreement: pd.DataFrame
    points: pd.DataFrame
    confounders: pd.DataFrame
    subgroups: pd.DataFrame


def detail_tables(
    lines: Sequence[HeadLine],
    targets: pd.DataFrame,
    shown: Sequence[str],
    protocol: SlideProtocol,
    draws: Draws,
    progress: Progress = silent,
) -> DetailTables:
    """Look at heads target by target.

    Args:
        lines: The heads.
        targets: As `target_table` makes it; targets that were not tested are left out.
        shown: Targets whose confounders and subgroups are looked at.
        protocol: Names confounders and subgroups.
        draws: How often to draw and to shuffle.
        progress: Shows the heads.
    """
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in DetailTables.__annotations__}
    for line in progress(lines, "looking into heads", len(lines)):
        own = targets[(targets["model"] == line.label) & (targets["n_folds"] > 0)]
        for name in own["target"]:
            target, patients = line.tested(str(name))[0], line.validations[0].patients
            found: dict[str, list[dict[str, Any]]] = {}
            if target.info.kind == "binary":
                found |= _calibrated(target)
            if target.info.kind in ("fraction", "continuous"):
                found |= _agreement(target)
            if name in shown:
                known = patients.loc[list(target.held_out.patients)]
                if target.info.kind == "binary":
                    found["confounders"] = [_stratified(target, known, one, draws) for one in protocol.confounders]
                found["subgroups"] = _subgroups(target, known, protocol.subgroups, draws)
            for table, parts in found.items():
                rows[table] += [{"model": line.label, "target": str(name), **part} for part in parts]
    return DetailTables(**{name: pd.DataFrame(parts) for name, parts in rows.items()})


def _calibrated(target: TestedTarget) -> dict[str, list[dict[str, Any]]]:
    from scipy.special import expit

    positive = target.truth[0]
    temperatures = [fit.info.temperature for fit in target.fits.values()]
    lacking = [fold for fold, fit in target.fits.items() if fit.info.temperature is None]
    notes = dict.fromkeys(note for fit in target.fits.values() for note in fit.info.notes)
    reason = f"no temperature in fold {', '.join(lacking)}" if lacking else ""
    reason += f" ({'; '.join(notes)})" if lacking and notes else ""
    before = np.nan if np.isnan(target.raw).any() else calibration_error(expit(target.raw), positive)
    row = {
        "n_patients": len(target),
        "temperature": np.nan if lacking else float(np.mean([one for one in temperatures if one is not None])),
        "ece_before": before,
        "ece_after": calibration_error(target.value, positive),
        "reason": reason,
    }
    bins = reliability_curve(target.value, positive).to_dict("records")
    return {"calibration": [row], "reliability": [{str(key): value for key, value in part.items()} for part in bins]}


def _agreement(target: TestedTarget) -> dict[str, list[dict[str, Any]]]:
    measured, held_out = target.truth[0], target.held_out
    found = bland_altman(target.value, measured)
    points = [
        {"patient": patient, "fold": fold, "measured": float(truth), "predicted": float(value)}
        for patient, fold, truth, value in zip(held_out.patients, held_out.folds, measured, target.value, strict=True)
    ]
    return {"agreement": [{"n_patients": len(target), **vars(found)}], "points": points}


def _stratified(target: TestedTarget, patients: pd.DataFrame, confounder: str, draws: Draws) -> dict[str, Any]:
    numbers = dict.fromkeys(("plain", "stratified", "null_mean", "p", "n_pairs", "share"), np.nan)
    row: dict[str, Any] = {"confounder": confounder, **numbers, "without_pair": "", "reason": ""}
    if confounder not in patients:
        return row | {"reason": f"the tables have no column {confounder}"}
    strata = [MISSING if pd.isna(value) else str(value) for value in _grouped(patients[confounder])]
    try:
        found = confounder_stratified_auroc(
            target.value, target.truth[0], strata, target.held_out, n=draws.permutations, seed=draws.seed
        )
    except MetricError as error:
        return row | {"reason": str(error)}
    values = {key: value for key, value in vars(found).items() if key in row}
    return row | values | {"without_pair": ", ".join(f"{name} {n}" for name, n in found.without_pair.items())}


def _subgroups(target: TestedTarget, patients: pd.DataFrame, names: Sequence[str], draws: Draws) -> list[dict[str, Any]]:
    groups = {name: _grouped(patients[name]).tolist() for name in names if name in patients}
    rows: list[dict[str, Any]] = []
    if groups:
        measure = MEASURES[target.info.kind][0]
        table = subgroup_table(
            measure.metric(target),
            target.held_out,
            target.value,
            *target.truth,
            groups=groups,
            strata=label_strata(target),
            n=draws.replicates,
            seed=draws.seed,
        )
        rows = [{str(key): value for key, value in row.items()} for row in table.to_dict("records")]
        rows = [{"measure": measure.name, **row} for row in rows]
    absent = [{"variable": name, "reason": f"the tables have no column {name}"} for name in names if name not in patients]
    return rows + absent


def _grouped(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Cut numbers into parts of the patients here; other values are groups as they are, empty cells are missing."""
    known = column.replace("", np.nan)
    numbers = pd.to_numeric(known, errors="coerce")
    if not numbers.notna().equals(known.notna()) or numbers.nunique() <= MOST_VALUES:
        return known
    parts, edges = pd.qcut(numbers, PARTS, labels=False, retbins=True, duplicates="drop")
    names = [f"{place + 1}: {low:.4g} to {high:.4g}" for place, (low, high) in enumerate(pairwise(edges))]
    return parts.map(dict(enumerate(names)))
