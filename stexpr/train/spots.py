"""Studies of spots: cohort, folds, and the runs of a study with the baselines that stand beside it."""

from collections.abc import Callable
from pathlib import Path

from stexpr.config import BASELINES, NetworkConfig, StudyConfig
from stexpr.data.splits import Fold, make_folds
from stexpr.data.store import PreparedCohort
from stexpr.errors import ProtocolError
from stexpr.evaluate.audit.leakage import check_before_training
from stexpr.train.checkpoint import StopFlag
from stexpr.train.distributed import ALONE, Processes
from stexpr.train.opened import OpenedStudy
from stexpr.train.run import run_fold, run_folder, window_px
from stexpr.types import Progress, silent


def open_cohort(config: StudyConfig) -> PreparedCohort:
    """Open the cohort of a study as its protocol wants it.

    Raises:
        DataError: It is no whole prepared cohort.
        ProtocolError: It was prepared with another stain normalization than the protocol fixes.
    """
    cohort, protocol = PreparedCohort.open(config.cohort), config.protocol
    if protocol.stain is not None and config.input.colors != "as_prepared":
        raise ProtocolError(
            f"the protocol {protocol.name} fixes the stain normalization {protocol.stain}, and input.colors = "
            f"{config.input.colors} is another; set input.colors=as_prepared or protocol.stain=null"
        )
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


class SpotStudy(OpenedStudy[StudyConfig]):
    """A study of spots, its cohort opened.

    Attributes:
        cohort: The prepared cohort.
    """

    def __init__(self, config: StudyConfig, opened: OpenedStudy[StudyConfig] | None = None) -> None:
        """Open a study.

        Args:
            config: The study.
            opened: One on the same cohort and partition, which are not read again then.
        """
        self.config = config
        shared = opened if isinstance(opened, SpotStudy) else None
        self.cohort: PreparedCohort = open_cohort(config) if shared is None else shared.cohort
        self.folds = study_folds(config, self.cohort) if shared is None else shared.folds

    @property
    def cohort_name(self) -> str:
        """Name of the cohort."""
        return self.cohort.name

    @property
    def data_hash(self) -> str:
        """Content hash of the cohort."""
        return self.cohort.hash

    def check(self) -> list[str]:
        """Look for patients or spots on both sides of a fold."""
        return list(check_before_training(self.cohort, self.folds))

    def studies(self) -> list[StudyConfig]:
        """Return the study and the baselines of its protocol."""
        return [self.config, *(self.config.baseline(model) for model in BASELINES)]

    def fold(self, study: StudyConfig, index: int) -> Fold:
        """Return a fold as a study sees it.

        What is fitted at once chooses no epochs; without inner splits one run of it serves every study of the protocol.
        """
        return self.folds[index] if isinstance(study.model, NetworkConfig) else self.folds[index].outer()

    def folder(self, study: StudyConfig, fold: Fold, runs: Path) -> Path:
        """Return where a run lives."""
        return run_folder(runs, study, self.cohort, fold)

    def run(
        self,
        study: StudyConfig,
        fold: Fold,
        runs: Path,
        *,
        stop: StopFlag,
        processes: Processes = ALONE,
        progress: Progress = silent,
        report: Callable[[str], None] = lambda line: None,
    ) -> Path:
        """Train, predict, score and record one fold."""
        return run_fold(
            study, self.cohort, fold, self.split_hash, runs, stop=stop, processes=processes, progress=progress, report=report
        )
