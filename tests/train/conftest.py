"""A study small enough to train in a second or two."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from small_study import STUDY
from stexpr.config import StudyConfig, load_study


@pytest.fixture
def study(small_cohort: Path, tmp_path: Path) -> Callable[..., StudyConfig]:
    """Return the small study with overrides."""
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(cohort=small_cohort))

    def load(*overrides: str) -> StudyConfig:
        return load_study(path, overrides)

    return load


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the baselines beside a study of a protocol of its own, whose network alone is looked at."""
    monkeypatch.setattr("stexpr.train.spots.BASELINES", ())


@pytest.fixture(scope="session")
def baselines(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Return what puts the finished baselines of fold 0 into a folder of runs, so that only the network is left to run."""
    folder = tmp_path_factory.mktemp("baselines")
    done: list[Path] = []

    def lend(runs: Path) -> None:
        from stexpr.train.study import run_study

        if not done:
            path = folder / "study.yaml"
            path.write_text(STUDY.format(cohort=small_cohort))
            config = load_study(path, ["folds=[0]", "model={kind: training_mean}"])
            done.extend(run_study(config, folder / "runs"))
        for run in done:
            shutil.copytree(run, runs / run.name, dirs_exist_ok=True)

    return lend


@pytest.fixture(scope="session")
def finished(
    small_cohort: Path, baselines: Callable[[Path], None], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Path], list[Path]]:
    """Return what puts fold 0 of the small study, as it is, into a folder of runs: network first, then baselines."""
    folder = tmp_path_factory.mktemp("finished")
    done: list[Path] = []

    def lend(runs: Path) -> list[Path]:
        from stexpr.train.study import run_study

        if not done:
            baselines(folder / "runs")
            path = folder / "study.yaml"
            path.write_text(STUDY.format(cohort=small_cohort))
            done.extend(run_study(load_study(path, ["folds=[0]"]), folder / "runs"))
        for run in done:
            shutil.copytree(run, runs / run.name, dirs_exist_ok=True)
        return [runs / run.name for run in done]

    return lend
