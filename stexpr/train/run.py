"""One run: one fold of one study, from training spots to a record."""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32

from stexpr.config import FrozenConfig, NetworkConfig, StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.panels import fold_panel
from stexpr.data.splits import Fold, write_folds
from stexpr.data.stain_reference import stain_reference
from stexpr.data.store import PreparedCohort
from stexpr.errors import ConfigError, DataError
from stexpr.evaluate.records import RECORD, Record, write_record
from stexpr.inference import predict_expression
from stexpr.models.encoders import ENCODERS
from stexpr.models.export import Release, save_model
from stexpr.panel import ExpressionTransform, GenePanel, Preprocessing
from stexpr.train import folder as names
from stexpr.train.accumulation import Accumulation
from stexpr.train.baselines import run_baseline
from stexpr.train.checkpoint import StopFlag
from stexpr.train.distributed import ALONE, Processes
from stexpr.train.frozen import fit_frozen, view_of
from stexpr.train.mirror import WandbMirror, mirrored_spots
from stexpr.train.network import NetworkTraining, Trained, most_auxiliary, without_auxiliary
from stexpr.train.results import Job, Predicted, make_record, write_results
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.types import Progress, silent

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
TISSUE_BYTES: Final = 4 * 2**30
"""Larger patches for pre-training stay on disk where they would take more memory."""


def window_px(config: StudyConfig, cohort: PreparedCohort) -> int:
    """Return the side of the field of view: the protocol's where it fixes one, else the study's, else the prepared patch.

    Raises:
        ConfigError: The study asks for another window than its protocol.
        DataError: The largest of several fields of view is larger than the prepared patch.
    """
    fixed, asked, fields_px = config.protocol.window_um, config.input.asked_px, config.input.fields_px
    window = (asked or cohort.window_px) if fixed is None else round(fixed / cohort.mpp)
    if asked not in (None, window):
        said = f"input.window_px = {asked}" if fields_px is None else f"the largest of input.fields_px is {asked} px"
        way = "input.window_px=null" if fields_px is None else f"{window} as its largest"
        raise ConfigError(
            f"{said}, but the protocol {config.protocol.name} fixes a window of {fixed:g} um, which is "
            f"{window} px at the cohort's {cohort.mpp:g} um/px; set {way} or protocol.window_um=null"
        )
    if fields_px is not None and window > cohort.window_px:
        raise DataError(
            f"the largest of input.fields_px, {window} px, is larger than the patches of {cohort.path} "
            f"({cohort.window_px} px); prepare the cohort with a larger window_px or leave it out"
        )
    return window


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
    processes: Processes = ALONE,
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
        processes: Who shares the training; the first writes.
        progress: Shows the epochs.
        report: Receives one line when the run is done.

    Returns:
        The run's folder.

    Raises:
        InterruptedTrainingError: A signal arrived; the same call resumes.
        StexprError: Whatever is wrong; results of earlier runs stay whole.
    """
    folder = run_folder(runs, config, cohort, fold)
    with ExitStack() as held:

        def hold() -> bool:
            held.enter_context(names.exclusive(folder))
            return (folder / RECORD).exists()

        if processes.on_first(hold):
            if config.model.role == "network":  # every study of a protocol passes by its baselines
                report(f"{config.label}, fold {fold.index}: done before ({folder})")
            return folder
        job = _job(config, cohort, fold, split_hash, folder)
        began, trackers = time.monotonic(), list[Tracker]()

        def conclude(predicted: Predicted) -> None:
            seconds = predicted.trained.seconds if predicted.trained else time.monotonic() - began
            record = _write(job, predicted, trackers, seconds)
            report(f"{config.label}, fold {fold.index}: {_in_words(record)} ({folder})")

        processes.on_first(lambda: _describe(job))
        if isinstance(config.model, NetworkConfig):
            network = _run_network(job, trackers, stop, processes, progress)
            processes.on_first(lambda: conclude(network))
        elif isinstance(config.model, FrozenConfig):
            processes.on_first(lambda: conclude(_run_frozen(job, trackers, stop)))
        else:
            processes.on_first(lambda: conclude(run_baseline(job)))
        return folder


def _job(config: StudyConfig, cohort: PreparedCohort, fold: Fold, split_hash: str, folder: Path) -> Job:
    unit = config.protocol.expression
    transform = ExpressionTransform(unit.kind, unit.target_sum, n_genes=len(cohort.genes))
    panel = fold_panel(config.protocol.panel, cohort, fold, n_auxiliary=most_auxiliary(config))
    cohort = cohort.colored(config.input.colors)
    return Job(config, cohort, fold, split_hash, panel, transform, window_px(config, cohort), folder)


def _describe(job: Job) -> None:
    names.write_config(job.folder / names.CONFIG, job.config)
    write_folds(job.folder / names.FOLDS, [job.fold])


def _write(job: Job, predicted: Predicted, trackers: list[Tracker], seconds: float) -> Record:
    folder, trained = job.folder, predicted.trained
    scores, maps = write_results(job, predicted)
    record = make_record(job, predicted, scores, seconds)
    summary = {name: value.value for name, value in record.values.items() if value.value is not None}
    for tracker in trackers:
        tracker.finish(summary, scores.per_gene, maps, folder / names.MODEL if trained else None)
    write_record(folder, record)
    (folder / names.CHECKPOINT).unlink(missing_ok=True)
    Accumulation(folder).forget()
    return record


def _run_network(job: Job, trackers: list[Tracker], stop: StopFlag, processes: Processes, progress: Progress) -> Predicted:
    config, fold, panel = job.config, job.fold, job.panel
    needed = panel.without_auxiliary() if without_auxiliary(config) else panel
    seen = fold.train_sections if fold.inner_rule != "test" else (*fold.train_sections, *fold.test_sections)
    data = job.spots(seen, needed, in_memory=config.runtime.patches_in_memory)
    training = NetworkTraining(
        config, fold, data, job.transform, job.folder, progress=progress, processes=processes, tissue=_tissue(job)
    )
    resumed = training.resume()
    metrics = None
    if processes.first:
        metrics = _open_trackers(job, trackers, keep_lines=int(resumed["lines"]) if resumed else 0)
    trained = training.run(metrics, trackers, stop, resumed)
    rows = training.training_rows
    mean = job.transform(data.counts_main[rows].numpy(), data.library[rows].numpy()).mean(axis=0)
    backbone = trained.model.backbone
    notes = [f"patches resized from {job.window_px} to {backbone.input_px} px"] if backbone.input_px != job.window_px else []
    if len(backbone.fields_px) > 1:
        sides = ", ".join(map(str, backbone.fields_px))
        notes = [f"fields of view of {sides} px share the backbone, each resized to {backbone.input_px} px"]
    notes += ["no auxiliary gene passed the filter"] if not needed.auxiliary and not without_auxiliary(config) else []
    found, asked = len(needed.auxiliary), most_auxiliary(config)
    notes += [f"{found} auxiliary genes passed the filter, {asked} were asked for"] if 0 < found < (asked or 0) else []
    return _predict(job, trained, needed, mean, tuple(notes), processes)


def _tissue(job: Job) -> Callable[[], SpotDataset] | None:
    """Return what reads the training sections with all that is prepared around each spot, None where it is not wanted."""
    pretrain, window_px = job.config.training.pretrain, job.cohort.window_px
    if pretrain is None or pretrain.source == "spots" or window_px == job.window_px:
        return None
    n_spots = sum(len(job.cohort.spots(section)) for section in job.fold.train_sections)
    fits = 3 * n_spots * window_px**2 <= TISSUE_BYTES
    in_memory = job.config.runtime.patches_in_memory and fits
    return lambda: replace(job, window_px=window_px).spots(job.fold.train_sections, in_memory=in_memory)


def _run_frozen(job: Job, trackers: list[Tracker], stop: StopFlag) -> Predicted:
    config = job.config
    assert isinstance(config.model, FrozenConfig)
    began = time.monotonic()
    _open_trackers(job, trackers, keep_lines=0)
    view = view_of(config.model, window_px=job.window_px, mpp=job.cohort.mpp, download=config.runtime.download)
    seen = replace(job, window_px=view.window_px)
    model, notes = fit_frozen(seen, view, stop)
    execution = {"processes": 1, "threads": torch.get_num_threads(), "accumulation": 1}
    trained = Trained(model, (), 0, time.monotonic() - began, execution)
    mean = job.expression(job.spots(job.fold.train_sections)).mean(axis=0)
    return _predict(seen, trained, job.panel.without_auxiliary(), mean, notes, ALONE)


def _open_trackers(job: Job, trackers: list[Tracker], *, keep_lines: int) -> MetricsFile:
    metrics = MetricsFile(job.folder / names.METRICS, keep_lines=keep_lines)
    trackers.append(metrics)
    if job.config.runtime.tracker == "wandb":
        mirrored = mirrored_spots(job.config, fold=job.fold.index, cohort_hash=job.cohort.hash)
        trackers.append(WandbMirror(mirrored, job.folder))
    return metrics


def _predict(
    job: Job, trained: Trained, panel: GenePanel, mean: Float32[Array, "G"], notes: tuple[str, ...], processes: Processes
) -> Predicted:
    """Predict the test spots of a fold, and export the model that does."""
    config = job.config
    test = job.spots(job.fold.test_sections, in_memory=config.runtime.patches_in_memory)
    expression = predict_expression(
        trained.model,
        test,
        processes.share(torch.arange(len(test))),
        batch_size=config.training.batch_size,
        symmetries=config.input.test_symmetries,
        precision=config.training.precision,
        workers=config.runtime.workers,
    )
    backbone = trained.model.backbone
    preprocessing = Preprocessing(
        mpp=job.cohort.mpp,
        window_px=job.window_px,
        input_px=backbone.input_px,
        stain=job.cohort.stain,
        mean=backbone.mean,
        sd=backbone.sd,
        fields_px=backbone.fields_px,
    )
    export = partial(
        save_model,
        job.folder / names.MODEL,
        trained.model,
        panel=panel,
        transform=job.transform,
        preprocessing=preprocessing,
        provenance=job.provenance(),
        release=Release(symmetries=config.input.test_symmetries, stain_reference=stain_reference(job.cohort)),
    )
    processes.on_first(export)
    known = {name: ENCODERS[name] for name in job.encoders}
    terms = [f"encoder {name}: {encoder.terms}; these terms hold for the exported model" for name, encoder in known.items()]
    scales = [f"encoder {name}: {encoder.scale_note}" for name, encoder in known.items() if encoder.scale_note]
    notes = (*notes, *terms, *scales, *trained.notes)
    return Predicted(processes.gather(expression), test, mean.astype(np.float32), notes, trained)


def _in_words(record: Record) -> str:
    value = record.values["pearson"].value
    return "r undefined" if value is None else f"mean r {value:.3f}"
