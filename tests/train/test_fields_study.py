"""A study whose backbone sees several fields of view: windows, records, boards, and the sweep that shares its folds."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from stexpr.config import StudyConfig
from stexpr.data.store import PreparedCohort
from stexpr.errors import ConfigError, DataError
from stexpr.evaluate.leaderboard import build_leaderboard
from stexpr.evaluate.records import read_record
from stexpr.models.export import load_model
from stexpr.train.evaluate import evaluate_runs
from stexpr.train.run import window_px
from stexpr.train.study import run_study
from stexpr.train.sweep.plan import partition_key

Study = Callable[..., StudyConfig]
FIELDS = "input={fields_px: [32, 16]}"


def test_a_study_of_two_fields(study: Study, tmp_path: Path, baselines: Callable[[Path], None], small_cohort: Path):
    baselines(tmp_path / "runs")
    run = run_study(study(FIELDS, "folds=[0]"), tmp_path / "runs")[0]
    record = read_record(run)
    assert record.model_label == "tiny + aux, 2 fields"
    assert record.settings["input"]["fields_px"] == [16, 32]
    assert "fields of view of 16, 32 px share the backbone, each resized to 16 px" in record.notes
    model = load_model(run / "model")
    assert model.preprocessing.fields_px == (16, 32)
    assert model.provenance["label"] == record.model_label
    assert model.provenance["input"]["fields_px"] == [16, 32]
    patches = torch.from_numpy(PreparedCohort.open(small_cohort).patches("a1")).permute(0, 3, 1, 2)
    assert model(patches[:4]).features.shape == (4, 2 * 192)
    assert "as recorded" in next(evaluate_runs(run))
    one = run_study(study("folds=[0]"), tmp_path / "runs")[0]
    assert "fields_px" not in read_record(one).settings["input"]
    board = build_leaderboard(tmp_path / "runs").markdown()
    assert "| tiny + aux, 2 fields |" in board
    assert "| tiny + aux |" in board


def test_fields_larger_than_the_prepared_patch_are_refused(study: Study, tmp_path: Path):
    with pytest.raises(DataError, match=r"the largest of input\.fields_px, 64 px, is larger than .* \(32 px\)"):
        run_study(study("input={fields_px: [16, 64]}", "folds=[0]"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_protocol_that_fixes_the_window_fixes_the_largest_field(study: Study, small_cohort: Path):
    cohort = PreparedCohort.open(small_cohort)
    fixed = f"protocol.window_um={32 * cohort.mpp}"
    assert window_px(study(FIELDS, fixed), cohort) == window_px(study(FIELDS), cohort) == 32
    with pytest.raises(ConfigError, match=r"the largest of input\.fields_px is 24 px, but .* set 32 as its largest"):
        window_px(study("input={fields_px: [16, 24]}", fixed), cohort)


def test_folds_are_shared_by_studies_of_one_window(study: Study):
    assert partition_key(study(FIELDS)) == partition_key(study("input={window_px: 32}"))
    assert partition_key(study(FIELDS)) != partition_key(study("input={fields_px: [16, 24]}"))
