"""Trained heads on the slides of another cohort, everything about them frozen: weights, calibration, thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import torch

from stexpr.config import validated
from stexpr.config.files import write_whole
from stexpr.config.slides import SlideProtocol, SlideTables
from stexpr.data.bag_store import BagStore
from stexpr.data.slide_cohort import SlideCohort, labelled
from stexpr.data.slide_data import SlideData, TargetColumns, read_tables
from stexpr.data.slide_examples import SlideExamples
from stexpr.data.slide_targets import read_targets
from stexpr.data.tables import named, read_slides
from stexpr.errors import DataError, LeakageError, MetricError, ModelError
from stexpr.evaluate.records import MODEL, read_any_record
from stexpr.evaluate.run_record import SlideRecord
from stexpr.evaluate.slides.held_targets import TestedTarget, tested_targets
from stexpr.evaluate.slides.kaplan_meier import risk_groups
from stexpr.evaluate.slides.logrank import log_rank
from stexpr.evaluate.slides.measures import MEASURES
from stexpr.evaluate.slides.resampling import bootstrap_interval
from stexpr.evaluate.slides.results import SlideResults, TargetInfo
from stexpr.inference.explain import check_fits
from stexpr.models.bag.saved import LoadedHead, load_head
from stexpr.train.slides.results import FittedTargets, labels_table, outputs_table, patients_table
from stexpr.train.slides.training import predict_patients

__all__ = ["Deployment", "deploy"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
EXTERNAL: Final = "external"
SCORES: Final = "scores.csv"
PREDICTIONS: Final = "predictions.csv"


@dataclass(frozen=True)
class Deployment:
    """What heads say of another cohort.

    Attributes:
        results: Of all heads together: probabilities, numbers and survival averaged; log hazards relative to the median of
            each head's training patients, averaged.
        scores: A row for each target and measure; empty without labels.
        notes: Who could not be predicted or scored, and why.
    """

    results: SlideResults
    scores: pd.DataFrame
    notes: tuple[str, ...]

    def write(self, folder: Path) -> list[Path]:
        """Write the tables of the results, `predictions.csv` and `scores.csv`.

        Raises:
            DataError: The folder cannot be written.
        """
        self.results.write(folder)
        tables = {PREDICTIONS: self.results.outputs.drop(columns=["part", "raw"]), SCORES: self.scores}
        for name, table in tables.items():
            text = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            write_whole(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
        return [folder / name for name in tables]


def deploy(runs: Sequence[Path], bags: str | Path, tables: SlideTables) -> Deployment:
    """Predict the patients of another cohort by heads of a slide study, as they are.

    Args:
        runs: Run folders of one study, usually its folds.
        bags: Folder of the cohort's bags, made by the encoder of the training bags.
        tables: Its slide table and clinical tables; targets without a column are predicted and not scored.

    Raises:
        LeakageError: A patient of the cohort was among the training patients of a head.
        ModelError: A folder holds no head, or bags are of another encoder, width or set of genes.
        DataError: A table or a bag cannot be read, a run, patient or slide stands twice, or no patient has a bag.
    """
    folders = [run.resolve() for run in runs]
    if twice := [str(run) for run, folder in zip(runs, folders, strict=True) if folders.count(folder) > 1]:
        raise DataError(f"{named('run', twice)} are one folder; give each run once, or its head would count twice")
    heads = [(load_head(run / MODEL), SlideResults.read(run), _protocol(run)) for run in runs]
    if not heads:
        raise DataError("no run is given; name the run folders of a slide study")
    store, protocol = BagStore.open(bags), heads[0][2]
    data, notes = _external(tables, store, protocol)
    results = []
    for run, (head, own, _) in zip(runs, heads, strict=True):
        check_fits(head, next(iter(store.bags.values())))
        if seen := [patient for patient in data.patients if patient in set(head.provenance.get("training_patients", ()))]:
            words = f"{named('patient', seen)} of the cohort trained the head of {run}"
            raise LeakageError(f"{words}; leave them out of the tables")
        results.append(_predicted(head, own, data, protocol))
    together = _together(results)
    tested = {name: target for name, target in tested_targets({EXTERNAL: together}).items() if target is not None}
    rows = [row for target in tested.values() for row in _score(target)]
    columns = ["target", "measure", "value", "low", "high", "interval", "n_patients"]
    return Deployment(together, pd.DataFrame(rows, columns=columns), tuple(notes))


def _protocol(run: Path) -> SlideProtocol:
    record = read_any_record(run)
    if not isinstance(record, SlideRecord):
        raise ModelError(f"{run} is a run of a study of spots; give run folders of a slide study")
    protocol = validated(SlideProtocol, record.protocol, str(run))
    assert isinstance(protocol, SlideProtocol)
    return protocol


def _external(tables: SlideTables, store: BagStore, protocol: SlideProtocol) -> tuple[SlideData, list[str]]:
    _, clinical = read_tables(tables)
    slides = read_slides(tables.slides)
    slides_of: dict[str, tuple[str, ...]] = {}
    for slide, patient in slides.patient_of.items():
        if slide in store.bags:
            slides_of[patient] = (*slides_of.get(patient, ()), slide)
    if not slides_of:
        raise DataError(f"no slide of {tables.slides} has a bag in {store.path}; names must agree, without .h5")
    known: dict[str, Any] = {}
    columns, unscored = [], []
    for config in protocol.targets:
        try:
            (found,), refused = read_targets([config], clinical, {})
            kept = [target.among(slides_of) for target in found]
        except DataError as err:
            unscored.append(f"not scored: {err}")
            continue
        unscored += [f"not scored: {why}" for why in refused.values()]
        known |= {target.name: target for target in kept}
        columns.append(TargetColumns(config, tuple(target.name for target in kept)))
    described = set(clinical.patients)
    cohort = SlideCohort(
        slides_of=slides_of,
        targets=known,
        without_slide=tuple(patient for patient in clinical.patients if patient not in slides_of),
        without_label={
            name: lacking
            for name, target in known.items()
            if (lacking := tuple(who for who in slides_of if who in described and who not in labelled(target)))
        },
        without_bag=tuple(slide for slide in slides.patient_of if slide not in store.bags),
        without_row=tuple(slide for slide in store.bags if slide not in slides.patient_of),
    )
    notes = cohort.describe().splitlines()[1:]
    if lost := [patient for patient in slides_of if patient not in described]:
        notes.append(f"{named('patient', lost)} in no clinical table: predicted, not scored")
    data = SlideData(
        name=tables.clinical[0].stem,
        cohort=cohort,
        columns=tuple(columns),
        clinical=clinical.columns,
        site_of={},
        store=BagStore(store.path, {slide: store[slide] for own in slides_of.values() for slide in own}),
    )
    return data, notes + unscored


def _predicted(head: LoadedHead, own: SlideResults, data: SlideData, protocol: SlideProtocol) -> SlideResults:
    covariates = None
    wanted = head.covariates.columns if head.covariates is not None else ()
    if head.covariates is not None:
        covariates = head.covariates({column: data.cells(column, data.patients) for column in wanted})
    examples = SlideExamples(data, head.instances, (), covariates, together=head.several_slides == "bags")
    outputs = predict_patients(head.model, examples, torch.arange(len(examples)))
    fitted = FittedTargets(own.targets, head.baseline)
    table = outputs_table(head.model, head.groups, fitted, outputs, data.patients, "test")
    parts = {"test": data.patients}
    scored = {name: info for name, info in own.targets.items() if name in data.cohort.targets}
    tables = [labels_table(data, scored, parts), own.labels[own.labels["part"] == "train"]]
    labels = pd.concat([table for table in tables if len(table)], ignore_index=True)
    known = [*protocol.confounders, *protocol.subgroups]
    bare = protocol.model_copy(update={"confounders": (), "subgroups": tuple(c for c in known if c in data.clinical)})
    return SlideResults(table, labels, patients_table(data, bare, wanted, parts), own.targets)


def _together(results: Sequence[SlideResults]) -> SlideResults:
    """Average heads; of survival, log hazards relative to each head's own training patients."""
    first = results[0]
    tables, targets = [], {}
    for name in dict.fromkeys(name for one in results for name in one.targets):
        infos = [one.targets[name] for one in results if name in one.targets]
        of_target = [(one.outputs[one.outputs["target"] == name], one.targets[name]) for one in results if name in one.targets]
        own = [_relative(outputs, info) for outputs, info in of_target]
        grouped = pd.concat(own).groupby(["patient", "part", "target", "output"], sort=False)
        joined = grouped.agg(value=("value", "mean"), raw=("raw", "mean"), heads=("value", "size")).reset_index()
        everywhere = joined[joined["heads"] == len(infos)].drop(columns="heads")  # a horizon of one head alone is of no use
        tables.append(everywhere)
        targets[name] = _joined(infos, set(everywhere["output"]))
    labels = pd.concat([one.labels for one in results], ignore_index=True).drop_duplicates(["patient", "part", "target"])
    return SlideResults(pd.concat(tables, ignore_index=True), labels, first.patients, targets)


def _relative(outputs: pd.DataFrame, info: TargetInfo) -> pd.DataFrame:
    if info.kind == "survival":
        shift = np.where(outputs["output"] == "", info.threshold or 0.0, 0.0)
        return outputs.assign(value=outputs["value"] - shift, raw=outputs["raw"] - shift)
    if info.kind == "binary":
        return outputs.assign(raw=outputs["raw"] / (info.temperature or 1.0))
    return outputs


def _joined(infos: Sequence[TargetInfo], outputs: set[str]) -> TargetInfo:
    first = infos[0]
    if first.kind == "survival":
        return replace(first, threshold=0.0, horizons=tuple(h for h in first.horizons if f"{h:g}" in outputs))
    thresholds = [info.threshold for info in infos if info.threshold is not None]
    threshold = float(np.mean(thresholds)) if thresholds else None
    return replace(first, temperature=1.0 if first.temperature is not None else None, threshold=threshold)


def _score(target: TestedTarget) -> list[tuple[Any, ...]]:
    """Score a target, its interval over patients, and what its frozen threshold does."""
    name, n = target.info.name, len(target)
    rows: list[tuple[Any, ...]] = []
    for measure in MEASURES[target.info.kind]:
        try:
            metric = measure.metric(target)
            value = float((metric[EXTERNAL] if isinstance(metric, Mapping) else metric)(target.value, *target.truth))
        except MetricError as err:
            rows.append((name, measure.name, np.nan, np.nan, np.nan, f"undefined: {err}", n))
            continue
        interval = bootstrap_interval(metric, target.held_out, target.value, *target.truth)
        rows.append((name, measure.name, value, interval.low, interval.high, interval.kind.replace(" within folds", ""), n))
    if target.info.threshold is not None:
        rows += _at_threshold(target, target.info.threshold)
    return rows


def _at_threshold(target: TestedTarget, threshold: float) -> list[tuple[Any, ...]]:
    name, called = target.info.name, target.value > threshold
    if target.info.kind == "survival":
        time, event = target.truth
        high = risk_groups(target.value, np.array([threshold], dtype=np.float64))
        if len(set(high.tolist())) < 2:
            return [(name, "logrank_p", np.nan, np.nan, np.nan, "undefined: all patients are in one risk group", len(target))]
        p = log_rank(time, event, np.where(high, "high", "low").tolist()).p
        return [(name, "logrank_p", p, np.nan, np.nan, "risk groups cut at the training patients' median", len(target))]
    if target.info.kind != "binary":
        return []
    rows: list[tuple[Any, ...]] = []
    for measure, want in (("sensitivity", True), ("specificity", False)):
        inside = target.truth[0].astype(bool) == want
        if inside.any():
            share = float((called == want)[inside].mean())
            rows.append((name, measure, share, np.nan, np.nan, f"at the frozen threshold {threshold:.3f}", int(inside.sum())))
    return rows
