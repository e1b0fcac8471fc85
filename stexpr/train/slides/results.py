"""From the outputs of a head to the tables a run leaves behind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32
from torch import Tensor

from stexpr.config.slides import SlideProtocol
from stexpr.data.slide_data import SITE, SlideData
from stexpr.data.targets import Survival
from stexpr.errors import MetricError
from stexpr.evaluate.slides.calibration import Temperature, fit_temperature
from stexpr.evaluate.slides.results import SlideResults, TargetInfo
from stexpr.evaluate.slides.thresholds import youden_threshold
from stexpr.models.bag.model import BagModel
from stexpr.models.bag.objectives import BagObjective
from stexpr.models.bag.survival import DiscreteTime, baseline_hazard
from stexpr.models.bag.targets import TargetGroup

__all__ = ["FittedTargets", "fit_targets", "labels_table", "outputs_table", "patients_table"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
HORIZON_SHARES = (0.25, 0.5, 0.75)


class Said(NamedTuple):
    """One output of a target for all patients."""

    output: str
    value: Float32[Array, "P"]
    raw: Float32[Array, "P"]


@dataclass(frozen=True)
class FittedTargets:
    """What is fitted without the test patients, once the head is trained.

    Attributes:
        targets: By name; those the head could not learn are left out.
        baseline: Of a Cox target, the cumulative baseline hazard at its horizons.
    """

    targets: Mapping[str, TargetInfo]
    baseline: Mapping[str, tuple[float, ...]]


def fit_targets(
    model: BagModel,
    groups: Sequence[TargetGroup],
    unlearned: Sequence[str],
    protocol: SlideProtocol,
    *,
    training: tuple[Float32[Tensor, "P K"], Sequence[Tensor]],
    held_out: tuple[Float32[Tensor, "Q K"], Sequence[Tensor]] | None,
) -> FittedTargets:
    """Fit temperatures and thresholds on patients that inner trainings held out, hazards and cut-offs on training patients.

    Args:
        model: The final one.
        groups: What its outputs tell.
        unlearned: Targets that they do not tell.
        protocol: Says the horizons of survival.
        training: Outputs and targets of the training patients, by the final model.
        held_out: The same of patients held out by inner trainings; None without those.
    """
    targets: dict[str, TargetInfo] = {}
    baseline: dict[str, tuple[float, ...]] = {}
    places = zip(groups, model.objectives, model.split_outputs(training[0]), training[1], strict=True)
    for i, (group, objective, output, target) in enumerate(places):
        assert isinstance(objective, BagObjective)
        if group.kind in ("cox", "discrete"):
            info, hazard = _fit_survival(group, objective, output, target, protocol)
            targets[group.names[0]] = info
            baseline |= {} if hazard is None else {group.names[0]: hazard}
            continue
        inner = None if held_out is None else (model.split_outputs(held_out[0])[i], held_out[1][i])
        for name, column in _learned(group, unlearned):
            info = TargetInfo(name, _kind(group), () if is_binary(group) else group.classes)
            if is_binary(group):
                info = _fit_binary(info, group, column, inner)
            targets[name] = info
    return FittedTargets(targets, baseline)


def is_binary(group: TargetGroup) -> bool:
    """Whether a group is of yes-or-no targets, as one logit each or as two classes."""
    return group.kind == "binary" or (group.kind == "multiclass" and group.classes == ("no", "yes"))


def _kind(group: TargetGroup) -> Any:
    return "binary" if is_binary(group) else "survival" if group.kind in ("cox", "discrete") else group.kind


def _learned(group: TargetGroup, unlearned: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, column) for column, name in enumerate(group.names) if name not in unlearned]


def binary_logit(group: TargetGroup, output: Float32[Tensor, "P _"], column: int) -> Float32[Array, "P"]:
    """Return the log odds of yes."""
    logit = output[:, 1] - output[:, 0] if group.kind == "multiclass" else output[:, column]
    found: Float32[Array, P] = logit.float().numpy()
    return found


def _fit_binary(info: TargetInfo, group: TargetGroup, column: int, inner: tuple[Tensor, Tensor] | None) -> TargetInfo:
    if inner is None:
        return replace(info, notes=("neither calibrated nor given a threshold: the protocol has no inner folds",))
    output, target = inner
    truth = target.float() if target.ndim == 1 else target[:, column]
    known = torch.isfinite(truth) & (truth >= 0)
    logit, positive = binary_logit(group, output, column)[known.numpy()], (truth[known] == 1).numpy()
    temperature, notes = None, []
    try:
        temperature = fit_temperature(logit, positive).value
    except MetricError as err:
        notes.append(f"not calibrated: {err}")
    try:
        threshold = youden_threshold(_probability(logit, temperature), positive)
    except MetricError as err:
        return replace(info, notes=(*notes, f"no threshold: {err}"))
    return replace(info, temperature=temperature, threshold=threshold, notes=tuple(notes))


def _fit_survival(
    group: TargetGroup, objective: BagObjective, output: Tensor, target: Tensor, protocol: SlideProtocol
) -> tuple[TargetInfo, tuple[float, ...] | None]:
    known = target[:, 0].isfinite()
    time, event = target[known, 0], target[known, 1] == 1
    log_hazard = survival_log_hazard(objective, output[known])
    quartiles = dict.fromkeys(time[event].quantile(torch.tensor(HORIZON_SHARES)).tolist())
    horizons = tuple(float(_named(horizon)) for horizon in protocol.horizons or quartiles)
    info = TargetInfo(group.names[0], "survival", threshold=float(log_hazard.median()), horizons=horizons)
    if isinstance(objective, DiscreteTime):
        return info, None
    hazard = baseline_hazard(log_hazard, time, event, torch.tensor(horizons))
    return info, tuple(float(value) for value in hazard)


def _named(horizon: float) -> str:
    """Name a time; six digits, so that its name and its value are one."""
    return f"{horizon:g}"


def survival_log_hazard(objective: BagObjective, output: Float32[Tensor, "P _"]) -> Float32[Tensor, "P"]:
    """Return one risk for each patient."""
    return objective.log_hazard(output) if isinstance(objective, DiscreteTime) else output[:, 0].float()


def outputs_table(
    model: BagModel,
    groups: Sequence[TargetGroup],
    fitted: FittedTargets,
    outputs: Float32[Tensor, "P K"],
    patients: Sequence[str],
    part: str,
) -> pd.DataFrame:
    """Return what a head says of patients, a row for each patient and output; see `SlideResults.outputs`."""
    tables = []
    for group, objective, output in zip(groups, model.objectives, model.split_outputs(outputs), strict=True):
        assert isinstance(objective, BagObjective)
        for name, said in _said(group, objective, output, fitted):
            columns = {"patient": list(patients), "part": part, "target": name}
            tables.append(pd.DataFrame({**columns, "output": said.output, "value": said.value, "raw": said.raw}))
    table = pd.concat(tables, ignore_index=True)
    return table.astype({"value": np.float64, "raw": np.float64})


def _said(group: TargetGroup, objective: BagObjective, output: Tensor, fitted: FittedTargets) -> Iterator[tuple[str, Said]]:
    learned = [name for name in group.names if name in fitted.targets]
    if is_binary(group):
        for name in learned:
            logit = binary_logit(group, output, group.names.index(name))
            yield name, Said("", _probability(logit, fitted.targets[name].temperature), logit)
        return
    with torch.inference_mode():
        value = (survival_log_hazard(objective, output) if _kind(group) == "survival" else objective.predict(output)).numpy()
    if _kind(group) == "survival":
        (name,) = learned
        yield name, Said("", value, value)
        yield from ((name, said) for said in _survival(objective, output, value, fitted, name))
    elif group.classes:
        raw = output.float().numpy()
        for i, label in enumerate(group.classes):
            own = raw[:, i] if raw.shape[1] == len(group.classes) else raw[:, 0]
            yield learned[0], Said(label, value[:, i], own)
    else:
        for name in learned:
            column = group.names.index(name)
            yield name, Said("", value if value.ndim == 1 else value[:, column], output[:, column].float().numpy())


def _survival(
    objective: BagObjective, output: Tensor, log_hazard: Float32[Array, "P"], fitted: FittedTargets, name: str
) -> Iterator[Said]:
    horizons = fitted.targets[name].horizons
    if isinstance(objective, DiscreteTime):
        with torch.inference_mode():
            survived = objective.survival(output, torch.tensor(horizons)).numpy()
    else:
        survived = np.exp(-np.asarray(fitted.baseline[name]) * np.exp(log_hazard.astype(np.float64))[:, None])
    for i, horizon in enumerate(horizons):
        yield Said(_named(horizon), survived[:, i].astype(np.float32), np.full(len(survived), np.nan, dtype=np.float32))


def _probability(logit: Float32[Array, "P"], temperature: float | None) -> Float32[Array, "P"]:
    return Temperature(1.0 if temperature is None else temperature).probabilities(logit).astype(np.float32)


def labels_table(data: SlideData, targets: Mapping[str, TargetInfo], parts: Mapping[str, Sequence[str]]) -> pd.DataFrame:
    """Return the labels of patients by part; see `SlideResults.labels`."""
    rows = []
    for name, info in targets.items():
        target = data.cohort.targets[name]
        for part, patients in parts.items():
            for patient in patients:
                if isinstance(target, Survival):
                    if patient in target.time:
                        row = ("", np.nan, target.time[patient], float(target.event[patient]))
                        rows.append((patient, part, name, *row))
                elif patient in target.values:
                    cell = target.values[patient]
                    value = float(info.classes.index(cell)) if info.classes else float(cell)
                    rows.append((patient, part, name, str(cell), value, np.nan, np.nan))
    return pd.DataFrame(rows, columns=["patient", "part", "target", "label", "value", "time", "event"])


def patients_table(
    data: SlideData, protocol: SlideProtocol, covariates: Sequence[str], parts: Mapping[str, Sequence[str]]
) -> pd.DataFrame:
    """Return what is known of patients by part; see `SlideResults.patients`."""
    tables = []
    for part, patients in parts.items():
        slides = [data.cohort.slides_of[patient] for patient in patients]
        table = {
            "patient": list(patients),
            "part": part,
            "n_slides": [len(own) for own in slides],
            "n_patches": [sum(data.store[slide].n for slide in own) for own in slides],
        }
        wanted = dict.fromkeys([*([SITE] if data.site_of else []), *protocol.confounders, *protocol.subgroups, *covariates])
        table |= {column: [cell or "" for cell in data.cells(column, patients)] for column in wanted}
        tables.append(pd.DataFrame(table))
    return pd.concat(tables, ignore_index=True)


def slide_results(
    outputs: Sequence[pd.DataFrame], labels: pd.DataFrame, patients: pd.DataFrame, fitted: FittedTargets
) -> SlideResults:
    """Put the tables of a run together."""
    return SlideResults(pd.concat(outputs, ignore_index=True), labels, patients, fitted.targets)
