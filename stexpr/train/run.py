"""One run: one fold of one study, from training spots to a record."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from stexpr.config import ColorRidgeConfig, NetworkConfig, StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.splits import Fold, write_folds
from stexpr.data.store import PreparedCohort
from stexpr.evaluate.records import RECORD, Record, write_record
from stexpr.inference import predict_expression
from stexpr.models.baselines import ColorRidge, color_features, fitting_radii
from stexpr.models.export import save_model
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing, fit_panel
from stexpr.train import folder as names
from stexpr.train.checkpoint import StopFlag
from stexpr.train.network import CHECKPOINT, NetworkTraining, without_auxiliary
from stexpr.train.results import Job, Predicted, make_record, write_results
from stexpr.train.tracking import MetricsFile, Tracker, WandbMirror
from stexpr.types import Progress, silent


def run_folder(runs: Path, config: StudyConfig, cohort: PreparedCohort, fold: Fold) -> Path:
    """Return where a run lives, `runs/<hash>`."""
    return runs / config.run_hash(cohort.hash, json.loads(json.dumps(fold.to_dict())))


def run_fold(
    config: StudyConfig,
    cohort: PreparedCohort,
    fold: Fold,
    split_hash: str,
    runs: Path,
    *,
    stop: StopFlag,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Train, predict, score and record one fold, or return at once if its record is there.

    Args:
        config: The study.
        cohort: Its cohort.
        fold: The partition.
        split_hash: Identifies all folds of the split together.
        runs: Folder of all runs.
        stop: Asked after every training step.
        progress: Shows the epochs.
        report: Receives one line when the run is done.

    Returns:
        The run's folder.

    Raises:
        InterruptedTrainingError: A signal arrived; the same call resumes.
        StexprError: Whatever is wrong; results of earlier runs stay whole.
    """
    folder = run_folder(runs, config, cohort, fold)
    with names.exclusive(folder):
        if (folder / RECORD).exists():
            if isinstance(config.model, NetworkConfig):  # every study of a protocol passes by its baselines
                report(f"{config.model.label}, fold {fold.index}: done before ({folder})")
            return folder
        began = time.monotonic()
        names.write_config(folder / names.CONFIG, config)
        write_folds(folder / names.FOLDS, [fold])
        unit = config.protocol.expression
        transform = ExpressionTransform(unit.kind, unit.target_sum, n_genes=len(cohort.genes))
        job = Job(config, cohort, fold, split_hash, fold_panel(config, cohort, fold), transform, folder)
        trackers: list[Tracker] = []
        is_network = isinstance(config.model, NetworkConfig)
        predicted = _run_network(job, trackers, stop, progress) if is_network else _run_baseline(job)
        scores, maps = write_results(job, predicted)
        seconds = predicted.trained.seconds if predicted.trained else time.monotonic() - began
        record = make_record(job, predicted, scores, seconds)
        summary = {name: value.value for name, value in record.values.items() if value.value is not None}
        for tracker in trackers:
            tracker.finish(summary, scores.per_gene, maps, folder / names.MODEL if predicted.trained else None)
        write_record(folder, record)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        report(f"{config.model.label}, fold {fold.index}: {_in_words(record)} ({folder})")
        return folder


def fold_panel(config: StudyConfig, cohort: PreparedCohort, fold: Fold) -> GenePanel:
    """Choose the genes of a fold, from its training spots unless the protocol says otherwise.

    Raises:
        GeneError: As `fit_panel`; the note names the fold.
    """
    rule = config.protocol.panel
    sections = fold.train_sections if rule.scope == "training" else cohort.sections
    try:
        return fit_panel(
            sp.vstack([cohort.counts(section) for section in sections], format="csr"),
            cohort.genes,
            rule=rule.rule,
            n_main=rule.n_main,
            include=rule.include,
            listed=rule.genes,
            min_detection=rule.min_detection,
            scope=rule.scope,
        )
    except Exception as err:
        err.add_note(f"while choosing the genes of fold {fold.index} of cohort {cohort.name}")
        raise


def _run_network(job: Job, trackers: list[Tracker], stop: StopFlag, progress: Progress) -> Predicted:
    config, cohort, fold, panel, folder = job.config, job.cohort, job.fold, job.panel, job.folder
    needed = _main_only(panel) if without_auxiliary(config) else panel
    window = config.input.window_px or cohort.window_px
    in_memory = config.runtime.patches_in_memory
    data = SpotDataset(cohort, fold.train_sections, needed, window_px=window, in_memory=in_memory)
    training = NetworkTraining(config, fold, data, job.transform, folder, progress=progress)
    resumed = training.resume()
    metrics = MetricsFile(folder / names.METRICS, keep_lines=int(resumed["lines"]) if resumed else 0)
    trackers.append(metrics)
    if config.runtime.tracker == "wandb":
        name = f"{config.model.label}-f{fold.index}-s{config.seed}".replace(" ", "")
        trackers.append(WandbMirror(config, folder, run_id=folder.name, name=name, fold=fold.index, cohort_hash=cohort.hash))
    trained = training.run(metrics, trackers, stop, resumed)
    mean = job.transform(data.counts_main.numpy(), data.library.numpy()).mean(axis=0)
    test = SpotDataset(cohort, fold.test_sections, _main_only(panel), window_px=window, in_memory=in_memory)
    expression = predict_expression(
        trained.model,
        test,
        torch.arange(len(test)),
        batch_size=config.training.batch_size,
        symmetries=config.input.test_symmetries,
        precision=config.training.precision,
        workers=config.runtime.workers,
    )
    backbone = trained.model.backbone
    preprocessing = Preprocessing(cohort.mpp, window, backbone.input_px, cohort.manifest.stain, backbone.mean, backbone.sd)
    save_model(
        folder / names.MODEL,
        trained.model,
        panel=needed,
        transform=job.transform,
        preprocessing=preprocessing,
        provenance=job.provenance(),
    )
    notes = [f"patches resized from {window} to {backbone.input_px} px"] if backbone.input_px != window else []
    notes += ["no auxiliary gene passed the filter"] if not needed.auxiliary and not without_auxiliary(config) else []
    return Predicted(expression, test, mean.astype(np.float32), tuple(notes), trained)


def _run_baseline(job: Job) -> Predicted:
    """Fit a baseline; it reads the whole prepared window, so every study of a cohort shares it."""
    cohort, fold, model = job.cohort, job.fold, job.config.model
    main = _main_only(job.panel)
    spots = {
        side: SpotDataset(cohort, sections, main, window_px=cohort.window_px, in_memory=False)
        for side, sections in (("train", fold.train_sections), ("test", fold.test_sections))
    }
    measured = job.transform(spots["train"].counts_main.numpy(), spots["train"].library.numpy())
    mean = measured.mean(axis=0).astype(np.float32)
    if not isinstance(model, ColorRidgeConfig):
        return Predicted(np.tile(mean, (len(spots["test"]), 1)), spots["test"], mean)
    radii = fitting_radii(model.radii_px, cohort.window_px)
    features = {
        side: np.concatenate([color_features(cohort.patches(section), radii) for section in sections])
        for side, sections in (("train", fold.train_sections), ("test", fold.test_sections))
    }
    table = spots["train"].spots
    groups = table["patient" if table["patient"].nunique() > 1 else "section"].to_numpy()
    ridge = ColorRidge(alphas=model.alphas).fit(features["train"], measured, groups)
    predicted = ridge.predict(features["test"]).astype(np.float32)
    note = f"radii {', '.join(map(str, radii))} px at {cohort.mpp:g} um/px; alpha {ridge.alpha:g}"
    return Predicted(predicted, spots["test"], mean, (note,))


def _main_only(panel: GenePanel) -> GenePanel:
    return GenePanel.from_dict({**panel.to_dict(), "auxiliary": ()})


def _in_words(record: Record) -> str:
    value = record.values["pearson"].value
    return "r undefined" if value is None else f"mean r {value:.3f}"
