"""How long a run of a slide study will take, from one step of a few patients."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

from stexpr.config.slides import SlideStudyConfig
from stexpr.data.splits import Fold
from stexpr.models.bag.model import BagModel
from stexpr.train.slides.job import SlideJob
from stexpr.train.slides.study import SlideStudy
from stexpr.train.slides.training import HeadTraining, predict_patients
from stexpr.train.timing import timed
from stexpr.types import PatientBatch

__all__ = ["PatientProbe", "probe_patients"]

PROBED: Final = 8


@dataclass(frozen=True)
class PatientProbe:
    """What one kind of training takes on this machine, per patient.

    Attributes:
        step_s: Seconds of training.
        predict_s: Seconds of prediction from all patches.
    """

    step_s: float
    predict_s: float

    def seconds(self, study: SlideStudyConfig, fold: Fold) -> float:
        """Estimate a run, at most: inner trainings may stop early and choose fewer epochs."""
        epochs = study.training.epochs
        inner = 0.0
        for split in fold.inner:
            inner += epochs * (len(split.train) * self.step_s + len(split.validation) * self.predict_s)
        return inner + epochs * len(fold.train) * self.step_s + (len(fold.train) + len(fold.test)) * self.predict_s


def probe_patients(opened: SlideStudy, study: SlideStudyConfig, fold: Fold) -> PatientProbe:
    """Time a training step and a prediction of the first training patients."""
    with tempfile.TemporaryDirectory() as folder:
        job = SlideJob(study, opened.data, fold, "", Path(folder))
        training = HeadTraining(study, fold, job.examples, job.groups, Path(folder))
        model = training.build(training.training_rows)
    device = model.mean.device
    events = _with_every_label(job, training)
    batch = job.examples.batch(events, device)

    def step() -> None:
        _gradient(model, batch, study.training.patches)

    n = len(events)
    return PatientProbe(timed(step, device) / n, timed(lambda: predict_patients(model, job.examples, events), device) / n)


def _with_every_label(job: SlideJob, training: HeadTraining) -> torch.Tensor:
    """Return some training patients; of a survival study those with an event first, without whom it has no loss."""
    rows = training.training_rows
    for target, group in zip(job.examples.targets, job.groups, strict=True):
        if group.kind == "cox":
            order = (target[rows, 1] != 1).to(torch.int64).argsort(stable=True)
            rows = rows[order]
    return rows[:PROBED]


def _gradient(model: BagModel, batch: PatientBatch, n: int | None) -> None:
    from stexpr.data.slide_examples import sampled

    model.train()
    model.gradient(batch if n is None else sampled(batch, n, torch.Generator()))
    model.zero_grad(set_to_none=True)
