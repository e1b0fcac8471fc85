"""What the folds of one cross-validation say of one target: held-out predictions beside the truth, patient by patient."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float64

from stexpr.errors import DataError
from stexpr.evaluate.slides.censoring import Censoring
from stexpr.evaluate.slides.held_out import HeldOut
from stexpr.evaluate.slides.inputs import Array
from stexpr.evaluate.slides.results import SlideResults, TargetInfo

__all__ = ["FoldFit", "TestedTarget", "tested_targets"]


@dataclass(frozen=True)
class FoldFit:
    """What one fold knows of a target without its test patients.

    Attributes:
        info: Temperature, threshold and horizons.
        training_time: Of the training patients of survival; empty else.
        training_event: Likewise, True where the event was observed.
        survival: Predicted survival of the fold's test patients at the horizons, patients x horizons; None where there is none.
    """

    info: TargetInfo
    training_time: Array
    training_event: Array
    survival: Array | None

    @cached_property
    def censoring(self) -> Censoring:
        """The censoring distribution of the training patients.

        Raises:
            MetricError: No training patient has a time.
        """
        return Censoring.of(self.training_time, self.training_event)


@dataclass(frozen=True)
class TestedTarget:
    """The held-out patients with a label, in the order of folds.

    Attributes:
        info: Name, kind and classes; what was fitted stands in `fits`.
        held_out: Patients and folds.
        value: Probability, fraction, number or log hazard by patient; patients x classes where there are classes.
        raw: The head's own output, likewise.
        truth: What the metrics take after the predictions: whether positive, the place among classes, the number, or time and
            event.
        fits: By fold.
    """

    __test__ = False  # for pytest, which takes the name for a test

    info: TargetInfo
    held_out: HeldOut
    value: Array
    raw: Array
    truth: tuple[Array, ...]
    fits: Mapping[str, FoldFit]

    def __len__(self) -> int:
        return len(self.held_out)


def tested_targets(folds: Mapping[str, SlideResults]) -> dict[str, TestedTarget | None]:
    """Put the test patients of all folds together, target by target.

    Args:
        folds: Results by name of the fold, of one cross-validation.

    Returns:
        In the order of the targets; None where no test patient has a label.

    Raises:
        DataError: A labeled test patient without a prediction or with two, or a label that is no number where one is needed.
        LeakageError: A patient tested in two folds.
    """
    infos: dict[str, TargetInfo] = {}
    parts: dict[str, dict[str, _Part]] = {}
    for fold, results in folds.items():
        labels = dict(list(results.labels.groupby("target")))
        outputs = dict(list(results.outputs[results.outputs["part"] == "test"].groupby("target")))
        for name, info in results.targets.items():
            infos.setdefault(name, info)
            of_target = (labels.get(name, results.labels.iloc[:0]), outputs.get(name, results.outputs.iloc[:0]))
            parts.setdefault(name, {})[fold] = _of_fold(*of_target, info)
    return {name: _put_together(info, parts[name]) for name, info in infos.items()}


_Part: TypeAlias = tuple[pd.DataFrame, Array, Array, FoldFit]
"""Labels of test patients, values, raw outputs, and what the fold knows."""


def _put_together(info: TargetInfo, parts: Mapping[str, _Part]) -> TestedTarget | None:
    tested = {fold: part for fold, part in parts.items() if len(part[0])}
    if not tested:
        return None
    labels = pd.concat([part[0] for part in tested.values()])
    value, raw = (np.concatenate([part[k] for part in tested.values()]) for k in (1, 2))
    names = [fold for fold, part in tested.items() for _ in range(len(part[0]))]
    held_out = HeldOut(tuple(map(str, labels.index)), tuple(names))
    return TestedTarget(info, held_out, value, raw, _truth(labels, info), {fold: part[3] for fold, part in tested.items()})


def _of_fold(labels: pd.DataFrame, outputs: pd.DataFrame, info: TargetInfo) -> _Part:
    tested = labels[labels["part"] == "test"].set_index("patient").sort_index()
    columns = list(info.classes) or [""]
    value, raw = (_wide(outputs, column, tested.index, columns, info.name) for column in ("value", "raw"))
    training = labels[labels["part"] == "train"]
    survival = None
    if info.kind == "survival" and info.horizons:
        times = outputs[outputs["output"] != ""].assign(output=lambda table: table["output"].astype(float))
        survival = _wide(times, "value", tested.index, list(info.horizons), info.name)
    of_survival = training if info.kind == "survival" else training.iloc[:0]
    time = of_survival["time"].to_numpy(dtype=np.float64)
    fit = FoldFit(info, time, of_survival["event"].to_numpy(dtype=np.float64) == 1, survival)
    flat = slice(None) if info.classes else 0
    return tested, value[:, flat], raw[:, flat], fit


def _wide(
    outputs: pd.DataFrame, column: str, patients: "pd.Index[Any]", names: list[Any], target: str
) -> Float64[Array, "P K"]:
    """Turn rows of outputs into patients x outputs; raw values may be missing, predictions never."""
    if outputs.duplicated(["patient", "output"]).any():
        raise DataError(f"a test patient has two predictions of {target}; join the slides of a patient first")
    row, place = patients.get_indexer(pd.Index(outputs["patient"])), pd.Index(names).get_indexer(pd.Index(outputs["output"]))
    known, values = (row >= 0) & (place >= 0), np.full((len(patients), len(names)), np.nan)
    values[row[known], place[known]] = outputs[column].to_numpy(dtype=np.float64)[known]
    lost = np.flatnonzero(np.isnan(values).any(axis=1))
    if column == "value" and lost.size:
        raise DataError(
            f"{lost.size} of {len(values)} labeled test patients have no prediction of {target} (first: {patients[lost[0]]}); "
            "delete the run and train this fold again"
        )
    return values


def _truth(labels: pd.DataFrame, info: TargetInfo) -> tuple[Array, ...]:
    if info.kind == "survival":
        return labels["time"].to_numpy(dtype=np.float64), labels["event"].to_numpy(dtype=np.float64) == 1
    values = labels["value"].to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"{info.name} has a label that is no number; leave such patients out by name when bags are labeled")
    if info.kind == "binary":
        return (values == 1,)
    return (values.astype(np.int64),) if info.classes else (values,)
