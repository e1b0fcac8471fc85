"""All folds of one study, and of the baselines that stand beside it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from stexpr.config.any_study import AnyStudy
from stexpr.config.slides import SlideStudyConfig
from stexpr.errors import TrainingError
from stexpr.train.checkpoint import StopFlag, stop_on_signals
from stexpr.train.distributed import Processes, joined
from stexpr.train.folder import BusyError
from stexpr.train.opened import OpenedStudy
from stexpr.train.slides.study import SlideStudy
from stexpr.train.spots import SpotStudy
from stexpr.types import Progress, silent


def open_study(config: AnyStudy, like: OpenedStudy[Any] | None = None) -> OpenedStudy[Any]:
    """Open a study of either task.

    Args:
        config: The study.
        like: One that reads the same data in the same folds, which are not read again then.

    Raises:
        DataError: What it reads is missing or damaged.
        ProtocolError: Its cohort was prepared otherwise than its protocol wants.
    """
    return SlideStudy(config, like) if isinstance(config, SlideStudyConfig) else SpotStudy(config, like)


def run_study(
    config: AnyStudy,
    runs: Path,
    *,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Run a study and its baselines, fold by fold; what has a record is not run again.

    Where `torchrun` started several processes, they share the training of each network of spots; the first writes, reports
    and fits the baselines.

    Args:
        config: The study.
        runs: Folder of all runs.
        progress: Shows the runs done, and the epochs of each training.
        report: Receives one line per run.

    Returns:
        Folders of the runs: the study's folds, then those of each baseline that no other process makes just now.

    Raises:
        ConfigError: `folds` names a fold that does not exist.
        LeakageError: A patient or a spot is on both sides of a fold, whatever it is called.
        InterruptedTrainingError: SIGINT or SIGTERM arrived; the same call resumes.
        StexprError: Whatever is wrong with a run; the other runs stay whole.
    """
    with joined(config.runtime.device) as processes, stop_on_signals() as stop:
        if not processes.first:
            progress, report = silent, lambda line: None
        if processes.size > 1 and isinstance(config, SlideStudyConfig):
            raise TrainingError(
                f"{processes.size} processes cannot share the training of a slide head; start one, and let a sweep run several"
            )
        return _run_study(open_study(config), runs, stop, processes, progress=progress, report=report)


def _run_study(
    opened: OpenedStudy[Any],
    runs: Path,
    stop: StopFlag,
    processes: Processes,
    *,
    progress: Progress,
    report: Callable[[str], None],
) -> list[Path]:
    for note in opened.check():
        report(f"{opened.cohort_name}: {note}")
    jobs = opened.jobs()
    done = []
    for study, fold in progress(jobs, f"{opened.config.label} on {opened.cohort_name}", len(jobs)):
        stop.agree(processes)
        stop.raise_if_set()
        try:
            one = opened.run(study, fold, runs, stop=stop, processes=processes, progress=progress, report=report)
        except BusyError as err:  # studies trained side by side share their baselines
            if study.model.role == "network" or processes.size > 1:
                raise
            report(f"{study.label}, fold {fold.index}: left to another process ({err})")
            continue
        done.append(one)
    return done
