"""The score of a head in parts of the cohort: by site, age, sex, ancestry."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from stexpr.errors import DataError
from stexpr.evaluate.intervals import REPLICATES
from stexpr.evaluate.slides.held_out import HeldOut, Metric, check_arrays, score_folds
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.resampling import bootstrap_interval

__all__ = ["subgroup_table"]

MISSING = "missing"


def subgroup_table(
    metric: Metric,
    held_out: HeldOut,
    predicted: Array,
    *truth: Array,
    groups: Mapping[str, Sequence[object]],
    strata: Sequence[str] | None = None,
    n: int = REPLICATES,
    seed: int = 0,
) -> pd.DataFrame:
    """Score every value of every variable within folds, with all patients first.

    Subgroups are small and many: their intervals overlap by chance and part by chance, and no test is made of them.

    Args:
        metric: As for `score_folds`.
        held_out: Patients and folds of the rows.
        predicted: Predictions on held-out patients.
        truth: What `metric` takes after the predictions.
        groups: Values by variable; patients with None or NaN make the group "missing". Bin numbers before.
        strata: Draw the bootstrap within these too, such as the label.
        n: Bootstrap replicates.
        seed: Recorded with the scores.

    Returns:
        `variable`, `value`, `n_patients`, `n_folds` (defined), `score`, `low`, `high`, `interval` (what it covers, or why
        there is none), `reason` (folds without a score and why; else empty).

    Raises:
        DataError: A variable of other patients, or what `score_folds` refuses.
    """
    check_arrays(held_out, predicted, *truth)
    members = [("all", "all", np.arange(len(held_out)))]
    for variable, values in groups.items():
        if len(values) != len(held_out):
            raise DataError(f"{variable} of {len(values)} patients for {len(held_out)}; give one value per patient")
        value_of = np.array([MISSING if pd.isna(value) else str(value) for value in values])  # type: ignore[call-overload]
        members += [(variable, str(value), np.flatnonzero(value_of == value)) for value in np.unique(value_of)]
    rows = []
    for variable, value, inside in members:
        kept, arrays = held_out.only(inside), tuple(array[inside] for array in (predicted, *truth))
        scores = score_folds(metric, kept, *arrays)
        drawn_within = None if strata is None else np.asarray(strata)[inside].tolist()
        interval = bootstrap_interval(metric, kept, *arrays, strata=drawn_within, n=n, seed=seed)
        folds = len(scores.values) - len(scores.undefined)
        reason = "; ".join(f"fold {fold}: {why}" for fold, why in scores.undefined.items())
        rows.append((variable, value, len(inside), folds, scores.mean, interval.low, interval.high, interval.kind, reason))
    columns = ["variable", "value", "n_patients", "n_folds", "score", "low", "high", "interval", "reason"]
    return pd.DataFrame(rows, columns=columns)
