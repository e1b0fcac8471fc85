"""All folds of one study, and of the baselines that stand beside it."""

from collections.abc import Callable, Sequence
from pathlib import Path

from stexpr.config import BASELINES, NetworkConfig, StudyConfig, content_hash
from stexpr.data.splits import Fold, make_folds
from stexpr.data.store import PreparedCohort
from stexpr.errors import ConfigError, ProtocolError
from stexpr.evaluate.audit.leakage import check_before_training
from stexpr.train.checkpoint import StopFlag, stop_on_signals
from stexpr.train.distributed import Processes, joined
from stexpr.train.folder import BusyError
from stexpr.train.run import run_fold, window_px
from stexpr.types import Progress, silent


def open_cohort(config: StudyConfig) -> PreparedCohort:
    """Open the cohort of a study as its protocol wants it.

    Raises:
        DataError: It is no whole prepared cohort.
        ProtocolError: It was prepared with another stain normalization than the protocol fixes.
    """
    cohort, protocol = PreparedCohort.open(config.cohort), config.protocol
    if protocol.stain not in (None, cohort.manifest.stain):
        raise ProtocolError(
            f"the protocol {protocol.name} fixes the stain normalization {protocol.stain}, the cohort {cohort.path} has "
            f"{cohort.manifest.stain}; prepare it with stain={protocol.stain} stain_reference=SECTION, or set "
            "protocol.stain=null, which the record then says"
        )
    return cohort.keeping(protocol.min_counts)


def study_folds(config: StudyConfig, cohort: PreparedCohort) -> tuple[Fold, ...]:
    """Return the folds of a study.

    Args:
        config: The study; its window sets the distance between training and validation blocks.
        cohort: Its cohort.
    """
    return make_folds(
        cohort.patient_of,
        config.protocol.split,
        config.protocol.validation,
        spots_of=cohort.spots,
        window_um=window_px(config, cohort) * cohort.mpp,
    )


def hash_of_split(folds: Sequence[Fold]) -> str:
    """Identify all folds of a split together, which is what a leaderboard compares."""
    return content_hash([fold.hash for fold in folds])


def study_jobs(config: StudyConfig, folds: Sequence[Fold]) -> list[tuple[StudyConfig, Fold]]:
    """List the runs of a study and of the baselines of its protocol: what is trained, and on which fold.

    Raises:
        ConfigError: `folds` names a fold that does not exist.
    """
    jobs = []
    for study in dict.fromkeys([config, *(config.baseline(model) for model in BASELINES)]):
        for index in range(len(folds)) if config.folds is None else config.folds:
            if index not in range(len(folds)):
                raise ConfigError(f"folds names fold {index}, but the study has folds 0 to {len(folds) - 1}")
            # what is fitted at once chooses no epochs; without inner splits one run of it serves every study of the protocol
            jobs.append((study, folds[index] if isinstance(study.model, NetworkConfig) else folds[index].outer()))
    return jobs


def run_study(
    config: StudyConfig,
    runs: Path,
    *,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> list[Path]:
    """Run a study and the baselines of its protocol, fold by fold; what has a record is not run again.

    Where `torchrun` started several processes, they share the training of each network; the first writes, reports and fits
    the baselines.

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
        return _run_study(config, runs, stop, processes, progress=progress, report=report)


def _run_study(
    config: StudyConfig,
    runs: Path,
    stop: StopFlag,
    processes: Processes,
    *,
    progress: Progress,
    report: Callable[[str], None],
) -> list[Path]:
    cohort = open_cohort(config)
    folds = study_folds(config, cohort)
    for note in check_before_training(cohort, folds):
        report(f"{cohort.name}: {note}")
    jobs = study_jobs(config, folds)
    split_hash = hash_of_split(folds)
    done = []
    for study, fold in progress(jobs, f"{config.model.label} on {cohort.name}", len(jobs)):
        stop.agree(processes)
        stop.raise_if_set()
        try:
            one = run_fold(
                study, cohort, fold, split_hash, runs, stop=stop, processes=processes, progress=progress, report=report
            )
        except BusyError as err:  # studies trained side by side share their baselines
            if study.model.role == "network" or processes.size > 1:
                raise
            report(f"{study.model.label}, fold {fold.index}: left to another process ({err})")
            continue
        done.append(one)
    return done
