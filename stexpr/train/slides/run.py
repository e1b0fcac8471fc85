"""One run of a slide study: one fold, from training patients to a record."""

from collections.abc import Callable
from pathlib import Path

import torch

from stexpr.data.splits import write_folds
from stexpr.evaluate.records import RECORD, write_record
from stexpr.evaluate.slides.results import SlideResults
from stexpr.models.bag.model import BagModel
from stexpr.train import folder as names
from stexpr.train.checkpoint import StopFlag
from stexpr.train.slides.job import SlideJob
from stexpr.train.slides.outcome import export_head, slide_record
from stexpr.train.slides.results import FittedTargets, fit_targets, labels_table, outputs_table, patients_table, slide_results
from stexpr.train.slides.training import HeadTraining, predict_patients
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.types import Progress, silent

__all__ = ["run_slide_fold"]


def run_slide_fold(
    job: SlideJob,
    *,
    stop: StopFlag,
    open_trackers: Callable[[SlideJob, list[Tracker], int], MetricsFile],
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train, predict, score and record one fold, or return at once if its record is there.

    Args:
        job: The run.
        stop: Asked after every training step.
        open_trackers: Opens `metrics.jsonl`, cut back to so many lines, and what mirrors it.
        progress: Shows the epochs.
        report: Receives one line when the run is done.

    Returns:
        The run's folder.

    Raises:
        InterruptedTrainingError: A signal arrived; the same call resumes.
        StexprError: Whatever is wrong; results of earlier runs stay whole.
    """
    folder, config = job.folder, job.config
    with names.exclusive(folder):
        if (folder / RECORD).exists():
            report(f"{config.label}, fold {job.fold.index}: done before ({folder})")
            return folder
        names.write_config(folder / names.CONFIG, config)
        write_folds(folder / names.FOLDS, [job.fold])
        training = HeadTraining(config, job.fold, job.examples, job.groups, folder, progress=progress)
        resumed = training.resume()
        trackers: list[Tracker] = []
        metrics = open_trackers(job, trackers, int(resumed["lines"]) if resumed else 0)
        model = training.train(metrics, trackers, stop, resumed).model
        results, fitted = _results(job, training, model)
        results.write(folder)
        export_head(job, training, model, fitted)
        record = slide_record(job, training, model, results)
        summary = {name: value.value for name, value in record.values.items() if value.value is not None}
        for tracker in trackers:
            tracker.finish(summary, results.outputs, [], folder / names.MODEL)
        write_record(folder, record)
        (folder / names.CHECKPOINT).unlink(missing_ok=True)
        report(f"{config.label}, fold {job.fold.index}: {record.in_words} ({folder})")
    return folder


def _results(job: SlideJob, training: HeadTraining, model: BagModel) -> tuple[SlideResults, FittedTargets]:
    examples, fold, protocol = job.examples, job.fold, job.config.protocol
    test_rows, train_rows = examples.rows(dict.fromkeys(fold.test_sections)), training.training_rows
    targets = examples.targets
    held_out = None
    if training.held_out:
        rows = torch.cat([rows for rows, _ in training.held_out])
        held_out = (torch.cat([outputs for _, outputs in training.held_out]), [target[rows] for target in targets])
    fitted = fit_targets(
        model.cpu(),
        job.groups,
        training.unlearned,
        protocol,
        training=(predict_patients(model, examples, train_rows), [target[train_rows] for target in targets]),
        held_out=held_out,
    )
    outputs = predict_patients(model, examples, test_rows)
    tables = [outputs_table(model, job.groups, fitted, outputs, examples.names(test_rows), "test")]
    for rows, inner in training.held_out:
        tables.append(outputs_table(model, job.groups, fitted, inner, examples.names(rows), "inner"))
    parts = {"test": examples.names(test_rows), "train": examples.names(train_rows)}
    labels = labels_table(job.data, fitted.targets, parts)
    patients = patients_table(job.data, protocol, job.config.model.covariates, parts)
    return slide_results(tables, labels, patients, fitted), fitted
