"""A study opened, of spots or of slides: which runs it has, whoever starts them."""

import abc
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from stexpr.config import StudyConfig, content_hash
from stexpr.config.slides import SlideStudyConfig
from stexpr.data.splits import Fold
from stexpr.errors import ConfigError
from stexpr.train.checkpoint import StopFlag
from stexpr.train.distributed import ALONE, Processes
from stexpr.types import Progress, silent

Study = TypeVar("Study", StudyConfig, SlideStudyConfig)


class OpenedStudy(abc.ABC, Generic[Study]):
    """A study and what it reads.

    Attributes:
        config: The study.
        folds: All folds of its protocol.
    """

    config: Study
    folds: tuple[Fold, ...]

    @property
    @abc.abstractmethod
    def cohort_name(self) -> str:
        """Name of the cohort."""

    @property
    @abc.abstractmethod
    def data_hash(self) -> str:
        """Identify what the study reads."""

    @abc.abstractmethod
    def check(self) -> list[str]:
        """Look for leakage before anything is trained.

        Returns:
            What else is worth knowing, in sentences.

        Raises:
            LeakageError: A patient is on both sides of a fold, whatever the name.
        """

    @abc.abstractmethod
    def studies(self) -> list[Study]:
        """Return the study and the baselines that stand beside it on every board."""

    @abc.abstractmethod
    def fold(self, study: Study, index: int) -> Fold:
        """Return a fold as a study sees it."""

    @abc.abstractmethod
    def folder(self, study: Study, fold: Fold, runs: Path) -> Path:
        """Return where a run lives, `runs/<hash>`."""

    @abc.abstractmethod
    def run(
        self,
        study: Study,
        fold: Fold,
        runs: Path,
        *,
        stop: StopFlag,
        processes: Processes = ALONE,
        progress: Progress = silent,
        report: Callable[[str], None] = lambda line: None,
    ) -> Path:
        """Train, predict, score and record one fold, or return at once if its record is there.

        Raises:
            InterruptedTrainingError: A signal arrived; the same call resumes.
            StexprError: Whatever is wrong; results of earlier runs stay whole.
        """

    @property
    def split_hash(self) -> str:
        """Identify all folds together, which is what a leaderboard compares."""
        return content_hash([fold.hash for fold in self.folds])

    def jobs(self) -> list[tuple[Study, Fold]]:
        """List the runs: what is trained, and on which fold.

        Raises:
            ConfigError: `folds` names a fold that does not exist.
        """
        jobs = []
        asked = range(len(self.folds)) if self.config.folds is None else self.config.folds
        for index in asked:
            if index not in range(len(self.folds)):
                raise ConfigError(f"folds names fold {index}, but the study has folds 0 to {len(self.folds) - 1}")
        for study in dict.fromkeys(self.studies()):
            jobs += [(study, self.fold(study, index)) for index in asked]
        return jobs
