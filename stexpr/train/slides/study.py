"""Studies of slides: their tables and bags, folds, and the runs of a study with the color baseline beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stexpr.config import content_hash
from stexpr.config.slides import SlideStudyConfig
from stexpr.data.slide_data import SlideData, open_slide_data
from stexpr.data.slide_folds import SlideFolds
from stexpr.data.splits import Fold
from stexpr.evaluate.slides.results import RESULT_FILES
from stexpr.train import folder as names
from stexpr.train.checkpoint import StopFlag
from stexpr.train.distributed import ALONE, Processes
from stexpr.train.mirror import Mirrored, WandbMirror
from stexpr.train.opened import OpenedStudy
from stexpr.train.slides.job import SlideJob
from stexpr.train.slides.run import run_slide_fold
from stexpr.train.slides.validation import VALIDATION
from stexpr.train.tracking import MetricsFile, Tracker
from stexpr.types import Progress, silent

__all__ = ["SlideStudy"]


class SlideStudy(OpenedStudy[SlideStudyConfig]):
    """A study of slides, its tables and bag headers read.

    Attributes:
        data: What it reads.
        split: Its folds, and what they lack.
    """

    def __init__(self, config: SlideStudyConfig, opened: OpenedStudy[Any] | None = None) -> None:
        """Open a study.

        Args:
            config: The study.
            opened: One on the same tables, bags and partition, which are not read again then.
        """
        self.config = config
        shared = opened if isinstance(opened, SlideStudy) else None
        self.data: SlideData = open_slide_data(config) if shared is None else shared.data
        self.split: SlideFolds = self.data.folds(config) if shared is None else shared.split
        self.folds = self.split.folds

    @property
    def cohort_name(self) -> str:
        """Name of the cohort."""
        return self.data.name

    @property
    def data_hash(self) -> str:
        """Identify patients, labels and bags."""
        return content_hash([self.data.hash, self.data.store.hash])

    def check(self) -> list[str]:
        """Name who is left out, and what the folds lack; a leak cannot be represented."""
        return [*self.data.describe().splitlines(), *self.split.describe().splitlines()]

    def studies(self) -> list[SlideStudyConfig]:
        """Return the study and, where the bags hold colors, its head on these."""
        colors = self.config.model.instances != "color" and all(bag.has("color") for bag in self.data.store.bags.values())
        return [self.config, *([self.config.color_baseline()] if colors else [])]

    def fold(self, study: SlideStudyConfig, index: int) -> Fold:
        """Return a fold."""
        return self.folds[index]

    def folder(self, study: SlideStudyConfig, fold: Fold, runs: Path) -> Path:
        """Return where a run lives."""
        return self._job(study, fold, runs).folder

    def run(
        self,
        study: SlideStudyConfig,
        fold: Fold,
        runs: Path,
        *,
        stop: StopFlag,
        processes: Processes = ALONE,
        progress: Progress = silent,
        report: Callable[[str], None] = lambda line: None,
    ) -> Path:
        """Train, predict, score and record one fold."""
        job = self._job(study, fold, runs)
        return run_slide_fold(job, stop=stop, open_trackers=_open_trackers, progress=progress, report=report)

    def _job(self, study: SlideStudyConfig, fold: Fold, runs: Path) -> SlideJob:
        return SlideJob(study, self.data, fold, self.split_hash, runs)


def _open_trackers(job: SlideJob, trackers: list[Tracker], keep_lines: int) -> MetricsFile:
    metrics = MetricsFile(job.folder / names.METRICS, keep_lines=keep_lines)
    trackers.append(metrics)
    if job.config.runtime.tracker == "wandb":
        trackers.append(WandbMirror(_mirrored(job), job.folder))
    return metrics


def _mirrored(job: SlideJob) -> Mirrored:
    config, model = job.config, job.config.model
    return Mirrored(
        name=f"{model.head}-{config.encoder_name}-{model.instances}-f{job.fold.index}-s{config.seed}",
        project=config.runtime.wandb_project,
        group=config.name,
        job_type="train" if model.role == "network" else "baseline",
        tags=(config.protocol.name, job.data.name, model.head, model.instances, config.encoder_name),
        config={**config.model_dump(mode="json"), "fold": job.fold.index, "cohort_hash": job.data.hash},
        metric=VALIDATION,
        table="outputs",
        predictions=RESULT_FILES,
        cohort=job.data.name,
        cohort_hash=job.data.hash,
        manifest=config.tables.clinical[0],
    )
