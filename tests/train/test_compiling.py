"""A compiled loss trains as the plain one does, but for rounding."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stexpr.config import StudyConfig, load_study
from stexpr.config.slides import HeadTrainingConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.store import PreparedCohort
from stexpr.panel import ExpressionTransform, GenePanel
from stexpr.train.network import NetworkTraining
from stexpr.train.spots import study_folds

SCRIPT = Path(__file__).parent / "compiled_losses.py"
PANEL = GenePanel(main=("G00", "G01"), auxiliary=("G20",), rule="list", scope="training", min_detection=0.0)


def test_compiling_changes_nothing_but_rounding(study: Callable[..., StudyConfig], small_cohort: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(small_cohort), str(tmp_path / "study.yaml")]
    study()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    # ten steps have statistics that are young, and are not compiled: two epochs of four have the same bits
    assert found["compiled"][:2] == found["plain"][:2]
    np.testing.assert_allclose(found["compiled"], found["plain"], rtol=1e-4)
    assert 0 < found["seconds"] < 60
    assert found["described"] == {"backend": "aot_eager", "warm_up_s": round(found["seconds"], 1), "shapes": 1}


def test_a_study_says_whether_it_compiles(study: Callable[..., StudyConfig], small_cohort: Path, tmp_path: Path) -> None:
    config = study("training.compile=true")
    assert config.run_hash("x", {}) != study().run_hash("x", {})
    assert load_study("mob").run_hash("x", {}) == load_study("mob", ["training.compile=false"]).run_hash("x", {})
    cohort = PreparedCohort.open(small_cohort)
    fold = study_folds(config, cohort)[0]
    data = SpotDataset(cohort, fold.train_sections, PANEL, window_px=24)
    training = NetworkTraining(config, fold, data, ExpressionTransform(), tmp_path)
    execution, _ = training._execution(training.fit(0).model)
    assert execution["compile"] == {"backend": "inductor", "warm_up_s": 0.0, "shapes": 0}
    with pytest.raises(ValueError, match="a head would be compiled for each"):
        HeadTrainingConfig(compile=True)
