"""The checks of one run: its fold, what it fitted, and on whom it was tested."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from stexpr.config import StudyConfig, load_study
from stexpr.data.splits import Fold, read_folds
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, LeakageError, StexprError
from stexpr.evaluate.audit.findings import Finding, not_done
from stexpr.evaluate.audit.fitted import check_panel, check_statistics
from stexpr.evaluate.audit.leakage import check_sides
from stexpr.evaluate.records import CONFIG, FOLDS, MODEL, PREDICTIONS, Record, read_predictions, read_record
from stexpr.models.export import LoadedModel, load_model

__all__ = ["audit_run"]

_NEED_FOLD = ("protocol", "tested spots", "panel", "statistics", "provenance")


@dataclass(frozen=True)
class _Run:
    """What a run's folder holds."""

    folder: Path
    record: Record
    config: StudyConfig
    cohort: PreparedCohort
    fold: Fold
    model: LoadedModel | None
    predictions: Any


def audit_run(folder: Path, cohort: PreparedCohort) -> tuple[Finding, ...]:
    """Check one finished run against its cohort.

    Args:
        folder: The run.
        cohort: What it was trained on.

    Returns:
        One finding for each check.

    Raises:
        DataError: The record cannot be read, or is of another cohort.
    """
    record = read_record(folder)
    if record.cohort.hash != cohort.hash:
        raise DataError(f"{folder} was trained on cohort {record.cohort.hash}, {cohort.path} is {cohort.hash}")
    subject = f"run {folder.name} ({record.model_label}, fold {record.fold.index})"
    return tuple(replace(finding, subject=subject) for finding in _findings(folder, record, cohort))


def _findings(folder: Path, record: Record, cohort: PreparedCohort) -> list[Finding]:
    config = load_study(folder / CONFIG)
    cohort = cohort.keeping(config.protocol.min_counts)
    try:
        folds = read_folds(folder / FOLDS)
    except (LeakageError, DataError) as err:
        leak = isinstance(err, LeakageError)
        first = Finding("patients", "leak", f"{err}; make the folds anew, by patient") if leak else None
        rest = [not_done(check, f"{FOLDS} names no fold that could be trained honestly", "flag") for check in _NEED_FOLD]
        return [first or not_done("patients", str(err), "flag"), *rest]
    if len(folds) != 1:
        return [not_done("patients", f"{FOLDS} holds {len(folds)} folds, a run has one", "flag")]
    sides = check_sides(folds[0], cohort.patient_of)
    if sides.severity == "flag":
        return [sides, *(not_done(check, sides.sentence, "flag") for check in _NEED_FOLD)]
    model, predictions, unread = _contents(folder)
    run = _Run(folder, record, config, cohort, folds[0], model, predictions)
    return [
        _sides_of_model(run, sides),
        _protocol(run),
        *unread,
        _tested(run),
        _panel(run),
        _statistics(run),
        _identity_of_run(run),
    ]


def _contents(folder: Path) -> tuple[LoadedModel | None, Any, list[Finding]]:
    """Read model and predictions where they are; what cannot be read is a finding."""
    model: LoadedModel | None = None
    predictions = None
    unread = []
    if (folder / MODEL).is_dir():
        try:
            model = load_model(folder / MODEL)
        except StexprError as err:
            unread.append(not_done("model", str(err), "flag"))
    try:
        predictions = read_predictions(folder)
    except DataError as err:
        unread.append(not_done("predictions", str(err), "flag"))
    return model, predictions, unread


def _sides_of_model(run: _Run, sides: Finding) -> Finding:
    """Compare the fold with whom record and model say were tested and trained on."""
    if sides.severity == "leak":
        return sides
    trained = run.model.provenance.get("training_patients", []) if run.model is not None else []
    both = sorted(set(trained) & set(run.record.fold.test_patients))
    if both:
        sentence = f"the model says it was trained on {', '.join(both)}, whom the run tests; delete the run and train again"
        return Finding("patients", "leak", sentence, {"patients": both})
    if set(run.record.fold.test_patients) != set(run.fold.test):
        return Finding("patients", "flag", f"the record tests {', '.join(run.record.fold.test_patients)}, {FOLDS} others")
    return sides


def _protocol(run: _Run) -> Finding:
    """Say where the protocol itself looks at test data, and whether the fold does without being told to."""
    protocol = run.config.protocol
    if run.fold.inner_rule == "test" and protocol.validation.rule != "test":
        sentence = "the number of epochs was chosen on the test sections, which the protocol does not say; train again"
        return Finding("protocol", "leak", sentence)
    if protocol.leaks:
        sentence = (
            f"declared by the protocol {protocol.name}: {'; '.join(protocol.leaks)}; the scores are no estimate for others"
        )
        return Finding("protocol", "leak", sentence, {"declared": True, "leaks": list(protocol.leaks)})
    return Finding("protocol", "passed", f"the protocol {protocol.name} declares no look at test data")


def _tested(run: _Run) -> Finding:
    """Compare the spots predicted with those of the fold's test sections."""
    if run.predictions is None:
        return not_done("tested spots", f"the run has no readable {PREDICTIONS}")
    expected = _names(run.cohort, run.fold.test_sections)
    training = _names(run.cohort, run.fold.train_sections)
    predicted = set(run.predictions.obs_names.astype(str))
    leaked = sorted(predicted & training)
    if leaked:
        sentence = f"{len(leaked)} of {len(predicted)} scored spots are training spots ({leaked[0]}, ...); train again"
        return Finding("tested spots", "leak", sentence, {"n": len(leaked)})
    if predicted != expected:
        missing, foreign = len(expected - predicted), len(predicted - expected)
        sentence = f"{missing} test spots have no prediction and {foreign} predictions no test spot; train again"
        return Finding("tested spots", "flag", sentence, {"missing": missing, "foreign": foreign})
    return Finding("tested spots", "passed", f"the {len(expected)} scored spots are those of the test sections, all of them")


def _panel(run: _Run) -> Finding:
    panels: dict[str, Sequence[str]] = {}
    if run.model is not None:
        panels[f"{MODEL}/genes.csv"] = run.model.panel.main
    if run.predictions is not None:
        panels[PREDICTIONS] = tuple(run.predictions.var_names.astype(str))
    try:
        return check_panel(run.config, run.cohort, run.fold, run.record, panels)
    except StexprError as err:
        return not_done("panel", str(err), "flag")


def _statistics(run: _Run) -> Finding:
    genes: tuple[str, ...] = ()
    mean = None
    if run.predictions is not None:
        genes = tuple(run.predictions.var_names.astype(str))
        mean = np.asarray(run.predictions.var["training_mean"], dtype=np.float64)
    unknown = sorted(set(genes) - set(run.cohort.genes))
    if unknown:
        return not_done("statistics", f"{PREDICTIONS} holds gene {unknown[0]!r}, which the cohort does not have", "flag")
    return check_statistics(run.config, run.cohort, run.fold, model=run.model, genes=genes, training_mean=mean)


def _identity_of_run(run: _Run) -> Finding:
    """Say whether configuration and folds are those the run was named by."""
    try:
        hashed = run.config.run_hash(run.cohort.hash, _json(run.fold))
    except DataError as err:  # weights of the machine it was trained on
        return not_done("provenance", str(err))
    if hashed == run.record.config_hash:
        return Finding("provenance", "passed", "configuration, fold and cohort are those the run was named by")
    sentence = f"configuration, fold and cohort give {hashed}, the record says {run.record.config_hash}: a file was edited"
    return Finding("provenance", "flag", f"{sentence}; train again")


def _json(fold: Fold) -> Any:
    import json

    return json.loads(json.dumps(fold.to_dict()))


def _names(cohort: PreparedCohort, sections: Sequence[str]) -> set[str]:
    return {f"{section}:{barcode}" for section in sections for barcode in cohort.spots(section).index}
