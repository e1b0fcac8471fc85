"""How long the missing runs of a sweep will take, from a few steps of each kind of training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from stexpr.config import FrozenConfig, StudyConfig, content_hash
from stexpr.config.slides import SlideStudyConfig
from stexpr.data.datasets import even_parts
from stexpr.data.panels import fold_panel
from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.inference import autocast, extract_features, predict_expression
from stexpr.panel import ExpressionTransform
from stexpr.train.frozen import frozen_backbone, view_of
from stexpr.train.loop import make_optimizer
from stexpr.train.network import build_network, most_auxiliary, without_auxiliary
from stexpr.train.results import Job
from stexpr.train.run import window_px
from stexpr.train.slides.probe import probe_patients
from stexpr.train.slides.study import SlideStudy
from stexpr.train.spots import SpotStudy
from stexpr.train.sweep.plan import PlannedRun
from stexpr.train.timing import timed
from stexpr.types import Progress, silent


@dataclass(frozen=True)
class Probe:
    """What one kind of training takes on this machine.

    Attributes:
        step_s: Seconds of a training step; 0 where there are none.
        spot_s: Seconds to predict or embed a spot, once.
    """

    step_s: float
    spot_s: float


def estimate_seconds(runs: Sequence[PlannedRun], *, threads: int, progress: Progress = silent) -> list[float]:
    """Estimate how long each run trains and predicts, at most: inner trainings may stop early and choose fewer epochs.

    Args:
        runs: Of networks; each kind (model, input, training, cohort) is probed once, on the real data.
        threads: CPU threads a run will have.
        progress: Shows the kinds.

    Returns:
        Seconds, one number for each run.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        kinds = {_kind(run): run for run in reversed(runs)}
        estimates = {kind: _estimate(run) for kind, run in progress(kinds.items(), "probing", len(kinds))}
    finally:
        torch.set_num_threads(before)
    return [estimates[_kind(run)](run) for run in runs]


def _kind(run: PlannedRun) -> str:
    study = run.study.model_dump(mode="json", include={"model", "input", "training", "protocol"})
    return content_hash({**study, "data": run.opened.data_hash})


def _estimate(run: PlannedRun) -> Callable[[PlannedRun], float]:
    """Probe a kind of run, and return what tells the seconds of each run of the kind."""
    opened, study = run.opened, run.study
    if isinstance(study, SlideStudyConfig):
        assert isinstance(opened, SlideStudy)
        per_patient = probe_patients(opened, study, run.fold)
        return lambda own: per_patient.seconds(study, own.fold)
    assert isinstance(opened, SpotStudy)
    cohort, probe, config = opened.cohort, _probe(opened.cohort, study, run.fold), study
    return lambda own: _seconds(cohort, config, own.fold, probe)


def _probe(cohort: PreparedCohort, config: StudyConfig, fold: Fold) -> Probe:
    unit = config.protocol.expression
    transform = ExpressionTransform(unit.kind, unit.target_sum, n_genes=len(cohort.genes))
    panel = fold_panel(config.protocol.panel, cohort, fold, n_auxiliary=most_auxiliary(config))
    job = Job(config, cohort, fold, "", panel, transform, window_px(config, cohort), Path())
    if isinstance(config.model, FrozenConfig):
        return _probe_frozen(job, config.model)
    spots = job.spots(fold.train_sections, panel.without_auxiliary() if without_auxiliary(config) else panel)
    rows = torch.arange(min(len(spots), config.training.batch_size))
    model = build_network(config, spots, torch.arange(len(spots)), transform)
    optimizer = make_optimizer(model, config.training)
    device = next(model.parameters()).device
    (batch,) = spots.batches([rows], device=device)

    def step() -> None:
        with autocast(device, config.training.precision):
            loss = model.loss(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def predict() -> None:
        predict_expression(model, spots, rows, batch_size=config.training.batch_size, precision=config.training.precision)

    return Probe(timed(step, device), timed(predict, device) / len(rows))


def _probe_frozen(job: Job, model: FrozenConfig) -> Probe:
    config = job.config
    view = view_of(model, window_px=job.window_px, mpp=job.cohort.mpp, download=config.runtime.download)
    backbone = frozen_backbone(config, view)
    spots = replace(job, window_px=view.window_px).spots(job.fold.train_sections[:1])
    rows = torch.arange(min(len(spots), config.training.batch_size))

    def embed() -> None:
        extract_features(backbone, spots, rows, batch_size=config.training.batch_size, precision=config.training.precision)

    return Probe(0.0, timed(embed, next(backbone.parameters()).device) / len(rows))


def _seconds(cohort: PreparedCohort, config: StudyConfig, fold: Fold, probe: Probe) -> float:
    training = config.training

    def spots_of(sections: Sequence[str]) -> int:
        return sum(len(cohort.spots(section)) for section in sections)

    def steps_of(n_spots: int) -> int:
        return len(even_parts(torch.arange(n_spots), training.batch_size))

    views = 8 if config.input.test_symmetries else 1
    if isinstance(config.model, FrozenConfig):
        return views * spots_of((*fold.train_sections, *fold.test_sections)) * probe.spot_s
    total = 0.0
    if training.pretrain is not None:  # two views of each patch
        share = probe.step_s / training.batch_size
        total += training.pretrain.epochs * 2 * spots_of(fold.train_sections) * share
    for inner in fold.inner:
        train, validation = (
            sum(spots_of([section]) if codes is None else len(codes) for section, codes in part.items())
            for part in (inner.train, inner.validation)
        )
        total += training.epochs * (steps_of(train) * probe.step_s + validation * probe.spot_s)
    if not fold.inner or config.protocol.validation.refit:
        total += training.epochs * steps_of(spots_of(fold.train_sections)) * probe.step_s
    return total + views * spots_of(fold.test_sections) * probe.spot_s
