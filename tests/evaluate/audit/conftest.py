"""A clean cohort of blotchy tissue, its raw files, and runs on it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from planted_sections import SECTIONS, Raw, trained

from stexpr.config import StudyConfig, load_study
from stexpr.data.store import PreparedCohort

STUDY = """
name: planted
cohort: {cohort}
protocol: {{panel: {{n_main: 12, min_detection: 0.05}}, validation: {{fraction: 0.5}}}}
input: {{window_px: 24}}
model: {{kind: network, backbone: tiny}}
training: {{epochs: 1, batch_size: 32}}
runtime: {{device: cpu}}
"""


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., Raw]:
    """Write raw sections (section -> patient), free of leaks."""

    def write(sections: dict[str, str], **arguments: int) -> Raw:
        return Raw(tmp_path / "raw", sections, **arguments)

    return write


@pytest.fixture(scope="session")
def clean(tmp_path_factory: pytest.TempPathFactory) -> PreparedCohort:
    """Four sections of three patients, prepared; read it, do not change it."""
    return Raw(tmp_path_factory.mktemp("clean") / "raw", dict(SECTIONS)).prepared()


@pytest.fixture(scope="session")
def study(clean: PreparedCohort, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., StudyConfig]:
    path = tmp_path_factory.mktemp("study") / "study.yaml"
    path.write_text(STUDY.format(cohort=clean.path))

    def load(*overrides: str) -> StudyConfig:
        return load_study(path, overrides)

    return load


@pytest.fixture(scope="session")
def runs(study: Callable[..., StudyConfig], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold 0 of a network and of two baselines; read them, do not change them."""
    folder = tmp_path_factory.mktemp("runs") / "runs"
    for overrides in ((), ("model={kind: training_mean}",), ("model={kind: color_ridge}",)):
        trained(study(*overrides), folder)
    return folder
