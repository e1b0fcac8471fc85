"""The scripts that say how far a model is above its baselines, and what each part of it is worth."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from small_study import STUDY
from stexpr.config.sweep import load_sweep
from stexpr.evaluate.lines import read_lines
from stexpr.evaluate.records import read_predictions, read_records
from stexpr.train.fused import FusedTraining
from stexpr.train.network import build_network
from stexpr.train.spots import SpotStudy
from stexpr.train.study import run_study

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
SWEEP = """
name: candidates
study: {study}
overrides: {{training.epochs: 2}}
list:
  - {{}}
  - {{model.fusion: {{radii_px: [4, 8], components: 3, share: 1.0}}}}
  - {{seed: 1}}
"""
FUSED = ("model.fusion={radii_px: [4, 8, 12], components: 5}", "input.colors=standardized")


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
    assert [row["seeds"] for row in rows] == [2, 1]
    assert rows[0]["seed_sd"] > 0
    assert rows[1]["seed_sd"] is None
    assert rows[0]["difference"] == 0
    assert rows[1]["difference"] == pytest.approx(rows[1]["r_validation"] - rows[0]["r_validation"], abs=1e-3)
    assert all(len(row["by_fold"]) == len(epochs) > 1 for row in rows for epochs in row["epochs"])
    assert ablation.rows_of(str(sweep), runs / "elsewhere") == ([], [*(row["changes"] for row in rows), {"seed": 1}])
    alone = [run for run in read_records(runs).complete if run.record.model_label == "descriptors alone"]
    tested = {run.record.fold.index: run.record.values["pearson"].value for run in alone}
    assert rows[1]["r_test"] == pytest.approx([tested[index] for index in sorted(tested)], abs=1e-4)
    folder = alone[0].folder
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
        assert (row["seed_sd"] is None) == (row["seeds"] == 1)


def test_the_regression_by_its_parts_is_that_of_a_fused_study(study: Callable):
    regression = script("regression")
    config = study(*FUSED)
    opened = SpotStudy(config)
    fold = opened.folds[0]
    own = regression.Regressions(config, opened, fold)
    train, held = (own.spots.rows(part) for part in (fold.inner[0].train, fold.inner[0].validation))
    fused = FusedTraining(config.model.fusion, own.spots, seed=0)
    network = build_network(config, own.spots, train, own.transform)
    expected = fused.expression(fused.fitted(network, train), network, held)
    shipped = regression.CANDIDATES["as shipped"]
    predicted, depth = own.predict(replace(shipped, components=5), train.numpy(), held.numpy())
    np.testing.assert_allclose(predicted, expected, atol=2e-3)
    assert depth.shape == (len(held),)
    at = own.score(predicted, held.numpy())
    assert -1 <= at <= 1
    assert own.score(own.expression[held.numpy()], held.numpy()) == pytest.approx(1)


def test_neighbors_and_penalties_are_changed_one_at_a_time(study: Callable, monkeypatch: pytest.MonkeyPatch):
    regression = script("regression")
    config = study(*FUSED)
    opened = SpotStudy(config)
    own = [regression.Regressions(config, opened, fold) for fold in opened.folds]
    chosen = ("as shipped", "one penalty for all components", "with means over 8 neighbors", "colors as prepared")
    monkeypatch.setattr(regression, "CANDIDATES", {name: regression.CANDIDATES[name] for name in chosen})
    rows = regression.parts(own, opened.folds)
    assert [row["candidate"] for row in rows] == list(chosen)
    assert rows[0]["difference"] == 0
    assert len({row["r_validation"] for row in rows}) == 4
    first = own[0]
    means = first._means(first.depth[:, None], 8)[:, 0]
    section = (first.spots.spots["section"] == first.spots.spots["section"].iloc[0]).to_numpy()
    places = first.spots.spots.loc[section, ["x_um", "y_um"]].to_numpy(float)
    nearest = np.linalg.norm(places - places[0], axis=1).argsort(kind="stable")[1:9]
    assert means[0] == pytest.approx(first.depth[section][nearest].mean())
    moved = regression.to_another_patient(first, opened.folds[0])
    assert [row["section"] for row in moved] == list(opened.folds[0].test_sections)
    assert all({"other_patients", "measured_depth"} <= set(row) for row in moved)


def test_the_mean_of_seeds_is_that_of_their_predictions(study: Callable, tmp_path: Path):
    ensembles = script("ensembles")
    for seed in (0, 1):
        run_study(study("folds=[0]", "training.epochs=2", f"seed={seed}", *FUSED), tmp_path / "runs")
    opened = SpotStudy(study(*FUSED))
    (fold, runs), *others = ensembles.networks(tmp_path / "runs").items()
    assert (fold, [run.record.seed for run in runs], others) == (0, [0, 1], [])
    rows = {(row["predicted_by"], row["symmetries"]): row for row in ensembles.scores(opened, fold, runs)}
    assert len(rows) == 6
    predicted = [read_predictions(run.folder) for run in runs]
    regression = script("regression").Regressions(opened.config, opened, opened.folds[0])
    here = regression.spots.rows(dict.fromkeys(opened.folds[0].test_sections)).numpy()
    expected = [regression.score(np.asarray(one.X), here) for one in predicted]
    whole = rows["model", True]
    assert whole["r_of_one"] == pytest.approx(np.mean(expected), abs=2e-4)
    mean = torch.tensor(np.array([one.X for one in predicted])).mean(dim=0).numpy()
    assert whole["r_of_mean"] == pytest.approx(regression.score(mean, here), abs=2e-4)
    assert rows["regression alone", True] == {**rows["regression alone", False], "symmetries": True}
    assert rows["network alone", True]["r_of_one"] != rows["regression alone", True]["r_of_one"]
