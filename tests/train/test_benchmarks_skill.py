"""The scripts that say how far a model is above its baselines, and what each part of it is worth."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from small_study import STUDY
from stexpr.config.sweep import load_sweep
from stexpr.evaluate.lines import read_lines
from stexpr.evaluate.records import read_records
from stexpr.train.study import run_study

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SWEEP = """
name: candidates
study: {study}
overrides: {{training.epochs: 2}}
list:
  - {{}}
  - {{model.fusion: {{radii_px: [4, 8], components: 3, share: 1.0}}}}
"""


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"skill_{name}", BENCHMARKS / "skill" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def swept(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A sweep of two candidates, and its runs."""
    folder = tmp_path_factory.mktemp("skill")
    (folder / "study.yaml").write_text(STUDY.format(cohort=small_cohort))
    sweep = folder / "candidates.yaml"
    sweep.write_text(SWEEP.format(study=folder / "study.yaml"))
    for study in load_sweep(sweep).studies:
        run_study(study, folder / "runs")
    return sweep, folder / "runs"


def test_candidates_are_compared_on_inner_validation(swept):
    sweep, runs = swept
    ablation = script("ablation")
    rows, missing = ablation.rows_of(str(sweep), runs)
    assert missing == []
    assert [row["model"] for row in rows] == ["tiny + aux", "descriptors alone"]
    assert rows[0]["difference"] == 0
    assert rows[1]["difference"] == pytest.approx(rows[1]["r_validation"] - rows[0]["r_validation"], abs=1e-3)
    assert all(len(row["by_fold"]) == len(row["epochs"]) > 1 for row in rows)
    assert ablation.rows_of(str(sweep), runs / "elsewhere") == ([], [row["changes"] for row in rows])
    folder = next(run.folder for run in read_records(runs).complete if run.record.kind == "network")
    r, epoch = ablation.validated(folder)
    assert 1 <= epoch <= 2
    assert -1 <= r <= 1


def test_margins_are_those_of_the_board(swept):
    margins = script("margins")
    models = margins.models_of(list(read_records(swept[1]).complete))
    lines = {line.label: line for line in read_lines(models)}
    rows = margins.margins(list(lines.values()))
    assert {row["baseline"] for row in rows} >= {"color ridge", "depth only", "neighbor oracle (sees the test data)"}
    for row in rows:
        r, other = (lines[row[key]].scores.values["pearson"] for key in ("model", "baseline"))
        assert row["margin"] == pytest.approx(r - other, abs=1e-3)
        assert row["low"] <= row["margin"] <= row["high"]
        assert row["seed_sd"] is None
