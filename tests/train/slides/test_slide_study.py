"""Slide studies from tables and bags to records: exact, resumable, with the color baseline beside every head."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from slide_cohorts import slide_study, write_cohort
from stexpr.config.slides import SlideStudyConfig, SlideTables
from stexpr.errors import ConfigError, DataError, LeakageError, ModelError
from stexpr.evaluate.records import read_any_record, read_record, read_records
from stexpr.evaluate.run_record import SlideRecord
from stexpr.evaluate.slides.results import SlideResults
from stexpr.models.bag.saved import load_head
from stexpr.train.checkpoint import InterruptedTrainingError, StopFlag
from stexpr.train.slides.deploy import deploy
from stexpr.train.slides.study import SlideStudy
from stexpr.train.study import run_study

MUTATIONS = {"kind": "binary", "columns": ["*_mut"]}
KI67 = {"kind": "fraction", "column": "KI67"}
GRADE = {"kind": "ordinal", "column": "GRADE", "order": ["G1", "G2", "G3"]}
SUBTYPE = {"kind": "multiclass", "column": "SUBTYPE"}
SIGNATURE = {"kind": "continuous", "columns": ["SIGNATURE"]}
OS = {"kind": "survival", "event": "OS"}
QUICK = {"protocol": {"split": {"k": 2, "inner_k": 2}}, "training": {"epochs": 2}}


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), patients=36, patches=8)


class StopAfter(StopFlag):
    """A flag that is set after some looks at it."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self.looks = looks

    def agree(self, processes: Any) -> None:
        self.looks -= 1
        if self.looks == 0:
            self.signal_number = 15


def one_fold(study: SlideStudyConfig, runs: Path, *, stop: StopFlag | None = None, index: int = 0) -> Path:
    opened = SlideStudy(study)
    return opened.run(study, opened.fold(study, index), runs, stop=stop or StopFlag())


def values_of(run: Path) -> dict[str, Any]:
    return {name: value.value for name, value in read_any_record(run).values.items()}


def test_every_target_has_its_head_and_its_scores(cohort: Path, tmp_path: Path) -> None:
    study = slide_study(cohort, MUTATIONS, KI67, GRADE, SUBTYPE, SIGNATURE, model={"covariates": ["AGE", "SEX"]}, **QUICK)
    run = one_fold(study, tmp_path)
    record = read_any_record(run)
    assert isinstance(record, SlideRecord)
    assert record.primary == "auroc"
    assert {"auroc/A_mut", "auroc/N_mut", "spearman/KI67", "quadratic_kappa/GRADE", "macro_auroc/SUBTYPE"} <= set(record.values)
    assert any("RARE_mut" in note for note in record.notes)
    assert record.n.patients + record.n.training_patients == 36
    results = SlideResults.read(run)
    assert set(results.targets) == {"A_mut", "N_mut", "KI67", "GRADE", "SUBTYPE", "SIGNATURE"}
    test = results.outputs[results.outputs["part"] == "test"]
    classes = test[test["target"] == "SUBTYPE"].groupby("patient")["value"].sum()
    np.testing.assert_allclose(classes, 1, atol=1e-5)
    assert test["value"].notna().all()
    inner = set(results.outputs[results.outputs["part"] == "inner"]["patient"])
    assert inner == set(results.patients[results.patients["part"] == "train"]["patient"])
    assert not inner & set(test["patient"])
    assert set(results.patients) >= {"AGE", "SEX", "site", "n_slides"}
    head = load_head(run / "model")
    assert head.covariates is not None
    assert [group.kind for group in head.groups] == ["binary", "fraction", "ordinal", "multiclass", "continuous"]
    with pytest.raises(DataError, match="run of a study of slides"):
        read_record(run)


def test_the_planted_mutation_is_learned_and_color_is_not(tmp_path: Path) -> None:
    folder = write_cohort(tmp_path, patients=60, patches=8)
    study = slide_study(folder, {"kind": "binary", "columns": ["A_mut"]}, training={"epochs": 40})
    lines: list[str] = []
    runs = run_study(study, tmp_path / "runs", report=lines.append)
    assert len(runs) == 4
    records = [run.record for run in read_records(tmp_path / "runs").slides]
    score = {kind: np.mean([r.values["auroc"].value for r in records if r.kind == kind]) for kind in ("network", "baseline")}
    assert score["network"] > 0.9
    assert score["baseline"] < 0.75
    assert any("59 patients, 2 folds" in line for line in lines)
    assert {record.model_label for record in records} == {"gated_attention on bags features", "gated_attention on bags color"}
    again: list[str] = []
    run_study(study, tmp_path / "runs", report=again.append)
    assert sum("done before" in line for line in again) == 4


@pytest.mark.parametrize("loss", ["cox", "discrete"])
def test_survival_is_learned(loss: str, tmp_path: Path) -> None:
    folder = write_cohort(tmp_path, patients=60, patches=8)
    study = slide_study(folder, {**OS, "loss": loss}, training={"epochs": 40})
    run = one_fold(study, tmp_path / "runs")
    assert values_of(run)["harrell_c"] > 0.65
    assert 0 < values_of(run)["integrated_brier"] < 0.25
    results = SlideResults.read(run)
    (info,) = results.targets.values()
    assert len(info.horizons) == 3
    outputs = results.outputs[results.outputs["part"] == "test"].pivot(index="patient", columns="output", values="value")
    survival = outputs[[f"{horizon:g}" for horizon in info.horizons]].to_numpy()
    assert ((survival >= 0) & (survival <= 1)).all()
    assert (np.diff(survival, axis=1) <= 1e-6).all()
    order = np.argsort(outputs[""].to_numpy())
    assert (np.diff(survival[order, -1]) <= 1e-6).all() or loss == "discrete"


@pytest.mark.parametrize("looks", [3, 7, 11])
def test_a_stopped_run_ends_as_an_uninterrupted_one(looks: int, cohort: Path, tmp_path: Path) -> None:
    study = slide_study(
        cohort,
        MUTATIONS,
        model={"dropout": 0.5},
        training={"epochs": 2, "patches": 4},
        protocol={"split": {"k": 2, "inner_k": 2}},
    )
    whole = one_fold(study, tmp_path / "whole")
    with pytest.raises(InterruptedTrainingError):
        one_fold(study, tmp_path / "stopped", stop=StopAfter(looks))
    resumed = one_fold(study, tmp_path / "stopped")
    assert values_of(resumed) == values_of(whole)
    pd.testing.assert_frame_equal(SlideResults.read(resumed).outputs, SlideResults.read(whole).outputs)
    assert (resumed / "metrics.jsonl").read_text() == (whole / "metrics.jsonl").read_text()
    assert not (resumed / "checkpoint.pt").exists()


def test_what_decides_a_result_decides_its_folder(cohort: Path, tmp_path: Path) -> None:
    base = slide_study(cohort, KI67)
    opened = SlideStudy(base)

    def name(study: SlideStudyConfig) -> str:
        return SlideStudy(study, opened).folder(study, opened.folds[0], tmp_path).name

    assert name(base.model_copy(update={"name": "other"})) == name(base)
    changed = [
        base.model_copy(update={"seed": 1}),
        base.model_copy(update={"encoder": "other"}),
        base.color_baseline(),
        slide_study(cohort, KI67, training={"lr": 0.02}),
        slide_study(cohort, KI67, model={"head": "mean"}),
    ]
    assert len({name(study) for study in [base, *changed]}) == 6


def test_clam_learns_two_classes_and_refuses_more_targets(cohort: Path, tmp_path: Path) -> None:
    run = one_fold(slide_study(cohort, {"kind": "binary", "columns": ["A_mut"]}, model={"head": "clam"}, **QUICK), tmp_path)
    results = SlideResults.read(run)
    assert results.targets["A_mut"].kind == "binary"
    assert set(results.outputs["output"]) == {""}
    with pytest.raises(ConfigError, match="clam learns one classification, the protocol has 2 targets"):
        one_fold(slide_study(cohort, MUTATIONS, KI67, model={"head": "clam"}), tmp_path)
    with pytest.raises(ModelError, match="clam learns one classification"):
        one_fold(slide_study(cohort, KI67, model={"head": "clam"}), tmp_path)
    with pytest.raises(ConfigError, match="a majority votes on yes or no"):
        one_fold(slide_study(cohort, KI67, model={"head": "patch_vote", "vote": "majority"}), tmp_path)


def test_patches_learn_their_own_labels(cohort: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    clinical = pd.read_csv(cohort / "clinical.csv").set_index("PATIENT")["KI67"]
    for patient, value in clinical.items():
        rows = "".join(f"{64 * i + 3},3,{value}\n" for i in range(5))
        (labels / f"{patient}-1.csv").write_text(f"x,y,value\n{rows}")
    study = slide_study(cohort, KI67, model={"head": "patch_vote", "patch_labels": str(labels)}, **QUICK)
    run = one_fold(study, tmp_path / "runs")
    assert "patch labels" in read_any_record(run).model_label
    with pytest.raises(ConfigError, match="patch labels are of one fraction"):
        one_fold(slide_study(cohort, MUTATIONS, model={"head": "patch_vote", "patch_labels": str(labels)}), tmp_path / "runs")


def test_sites_stay_together_and_an_impossible_partition_is_refused(cohort: Path) -> None:
    opened = SlideStudy(slide_study(cohort, MUTATIONS, protocol={"split": {"k": 4, "inner_k": 2, "preserve_sites": True}}))
    for fold in opened.folds:
        sites = [{opened.data.site_of[patient] for patient in side} for side in (fold.train, fold.test)]
        assert not sites[0] & sites[1]
    assert "8 sites kept whole" in "\n".join(opened.check())
    with pytest.raises(DataError, match="cannot make 9 folds"):
        SlideStudy(slide_study(cohort, MUTATIONS, protocol={"split": {"k": 9, "preserve_sites": True}}))


def test_a_head_is_deployed_frozen_on_another_cohort(cohort: Path, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", patients=20, patches=8, seed=5)
    for table in ("clinical", "slides"):
        frame = pd.read_csv(other / f"{table}.csv", dtype=str, keep_default_na=False)
        frame.assign(PATIENT="X" + frame["PATIENT"]).to_csv(other / f"{table}.csv", index=False)
    tables = SlideTables(clinical=(other / "clinical.csv",), slides=other / "slides.csv")
    study = slide_study(cohort, MUTATIONS, KI67, training={"epochs": 4}, model={"covariates": ["AGE"]})
    runs = [one_fold(study, tmp_path / "runs", index=index) for index in (0, 1)]
    alone, both = deploy(runs[:1], other / "bags", tables), deploy(runs, other / "bags", tables)
    assert alone.results.targets["A_mut"].temperature in (None, 1.0)
    single = [deploy([run], other / "bags", tables).results.outputs.set_index(["patient", "target"])["value"] for run in runs]
    together = both.results.outputs.set_index(["patient", "target"])["value"]
    np.testing.assert_allclose(together, (single[0] + single[1]).loc[together.index] / 2, rtol=1e-5)
    scores = both.scores.set_index(["target", "measure"])["value"]
    assert {"auroc", "sensitivity", "specificity"} <= set(scores["A_mut"].index)
    assert np.isfinite(scores["KI67", "spearman"])
    assert {path.name for path in both.write(tmp_path / "out")} == {"predictions.csv", "scores.csv"}
    bare = replace_cells(other, tables, tmp_path / "bare")
    unlabelled = deploy(runs, other / "bags", bare)
    assert unlabelled.scores.empty
    pd.testing.assert_frame_equal(unlabelled.results.outputs, both.results.outputs)
    assert any("not scored" in note for note in unlabelled.notes)
    own = SlideTables(clinical=(cohort / "clinical.csv",), slides=cohort / "slides.csv")
    with pytest.raises(LeakageError, match="trained the head"):
        deploy(runs, cohort / "bags", own)


def replace_cells(folder: Path, tables: SlideTables, where: Path) -> SlideTables:
    """Leave nothing in the clinical table but what covariates need."""
    where.mkdir()
    pd.read_csv(folder / "clinical.csv")[["PATIENT", "AGE"]].to_csv(where / "clinical.csv", index=False)
    return tables.model_copy(update={"clinical": (where / "clinical.csv",)})


def test_survival_is_deployed_relative_to_each_heads_training_patients(cohort: Path, tmp_path: Path) -> None:
    other = write_cohort(tmp_path / "other", patients=20, patches=8, seed=5)
    for table in ("clinical", "slides"):
        frame = pd.read_csv(other / f"{table}.csv", dtype=str, keep_default_na=False)
        frame.assign(PATIENT="X" + frame["PATIENT"]).to_csv(other / f"{table}.csv", index=False)
    run = one_fold(slide_study(cohort, OS, training={"epochs": 10}), tmp_path / "runs")
    tables = SlideTables(clinical=(other / "clinical.csv",), slides=other / "slides.csv")
    found = deploy([run], other / "bags", tables)
    (info,) = found.results.targets.values()
    assert info.threshold == 0
    scores = found.scores.set_index("measure")["value"]
    assert 0 < scores["harrell_c"] <= 1
    assert 0 <= scores["logrank_p"] <= 1 or np.isnan(scores["logrank_p"])
    head = load_head(run / "model")
    with pytest.raises(ModelError, match="4 features where it reads 8"):
        deploy([run], wider(other, tmp_path / "wide"), tables)
    assert head.baseline["OS"]


def wider(folder: Path, where: Path) -> Path:
    """Write bags of the same slides with another number of features."""
    from stexpr.data.bags import BagRows, write_bag

    for path in (folder / "bags").glob("*.h5"):
        rows = BagRows(np.zeros((2, 4), dtype=np.float32), np.zeros((2, 2), dtype=np.int64))
        write_bag(where / path.name, [rows], mpp=1.0, patch_px=64, side=64.0, encoder="drawn")
    return where


def test_the_record_says_what_the_run_was(cohort: Path, tmp_path: Path) -> None:
    study = slide_study(cohort, KI67, model={"instances": "both", "head": "additive"}, seed=3, encoder="mine", **QUICK)
    run = one_fold(study, tmp_path)
    content = json.loads((run / "record.json").read_text())
    assert content["task"] == "slides"
    assert content["model_label"] == "additive on mine both"
    assert content["bags"]["encoder"] == "mine"
    assert content["bags"]["encoder_hash"] == "drawn"
    assert content["bags"]["width"] == 11
    assert content["protocol"]["targets"][0]["column"] == "KI67"
    assert not re.search(re.escape(str(tmp_path.parent)), (run / "record.json").read_text())
    head = load_head(run / "model")
    assert head.genes == ("ERBB2", "MKI67", "ESR1")
    assert replace(head, hash="").provenance["training_patients"]
    torch.manual_seed(0)
