"""The committed tables: made again from raw data where that takes seconds, and consistent with each other everywhere."""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from stexpr.config import BASELINES, TrainingMeanConfig, load_study
from stexpr.evaluate.inflation import inflation
from stexpr.evaluate.leaderboard import build_leaderboard
from stexpr.train.study import run_study

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
COHORTS = ["mob", "her2st"]


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    sys.path.insert(0, str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("tables", BENCHMARKS / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(BENCHMARKS))


def test_the_readme_holds_the_tables_of_the_results(tables: ModuleType) -> None:
    text = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert tables.written(text) == text
    assert text.count("<!-- table: ") == text.count("<!-- end -->") == len(tables.MARKED.findall(text)) >= 9
    changed = text.replace("| 1 | ", "| 7 | ")
    assert tables.written(changed) == text != changed


@pytest.mark.parametrize("cohort", COHORTS)
def test_the_models_have_the_means_of_their_genes(cohort: str) -> None:
    models = pd.read_csv(BENCHMARKS / "results" / cohort / "leaderboard.csv").set_index("model")
    genes = pd.read_csv(BENCHMARKS / "results" / cohort / "per_gene.csv")
    patients = pd.read_csv(BENCHMARKS / "results" / cohort / "patients.csv").set_index("model")
    assert (models["kind"] == "network").sum() >= 6
    assert {f"{backbone}{aux}" for backbone in ("resnet18", "efficientnet_b0") for aux in ("", " + aux")} <= set(models.index)
    assert {model.label for model in BASELINES} <= set(models.index)
    for model, row in models.iterrows():
        if np.isnan(row["r"]):
            assert genes[model].isna().all()
            continue
        assert row["r"] == pytest.approx(genes[model].mean(), abs=2e-6)
        known = genes[genes["ceiling"].notna()]
        assert row["r_over_ceiling"] == pytest.approx(known[model].mean() / known["ceiling"].mean(), abs=2e-6)
        assert row["r_low"] < row["r"] < row["r_high"]
        assert patients.loc[model].between(-1, 1).all()
    ranked = models[models["rank"].notna()]
    assert ranked["r"].dropna().is_monotonic_decreasing
    assert ranked["rank"].tolist() == list(range(1, len(ranked) + 1))


@pytest.mark.real
def test_the_baselines_of_mob_come_out_again_from_the_raw_data(mob_cohort: Path, tmp_path: Path) -> None:
    study = load_study("mob", [f"cohort={mob_cohort}", "runtime.device=cpu"])
    run_study(study.baseline(TrainingMeanConfig()), tmp_path / "runs")
    again = build_leaderboard(tmp_path / "runs").models.set_index("model")
    committed = pd.read_csv(BENCHMARKS / "results" / "mob" / "leaderboard.csv").set_index("model")
    labels = [model.label for model in BASELINES]
    assert sorted(again.index) == sorted(labels)
    numbers = [name for name in committed.select_dtypes("number") if name in again and name not in ("rank", "minutes")]
    assert {"r", "r_low", "r_high", "ceiling", "rmse", "slope", "genes_spatial", "ssim", "domain_ari"} <= set(numbers)
    for name in numbers:
        ours, theirs = (frame.loc[labels, name].astype(float).to_numpy() for frame in (again, committed))
        np.testing.assert_allclose(ours, theirs, atol=2e-6, rtol=1e-5, err_msg=name)
    table = inflation(tmp_path / "runs").scores.set_index(["model", "protocol"])["r"]
    text = (BENCHMARKS / "results" / "mob" / "inflation.md").read_text(encoding="utf-8")
    for model, protocol in (("depth only", "hest"), ("color ridge", "brstnet"), ("color ridge", "triplex")):
        assert f"{table[model, protocol]:.3f} (" in text
