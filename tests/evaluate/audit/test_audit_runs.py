"""Runs with every kind of leak planted in what they left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch
import yaml
from planted_sections import trained

from stexpr.config import StudyConfig, content_hash
from stexpr.data.panels import fold_panel
from stexpr.data.splits import Fold, read_folds
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, LeakageError
from stexpr.evaluate.audit.findings import Finding
from stexpr.evaluate.audit.leakage import check_before_training, check_sides
from stexpr.evaluate.audit.report import audit
from stexpr.evaluate.audit.runs import audit_run
from stexpr.evaluate.records import read_record, read_records
from stexpr.models.export import load_model, save_model
from stexpr.models.objectives import make_objective

CHECKS = ["patients", "protocol", "tested spots", "panel", "statistics", "provenance"]
CLEAN = dict.fromkeys(CHECKS, "passed")


def network_run(runs: Path) -> Path:
    return next(run.folder for run in read_records(runs).complete if run.record.kind == "network")


@pytest.fixture
def run(runs: Path, tmp_path: Path) -> Path:
    """A network's run, to plant something in."""
    shutil.copytree(network_run(runs), tmp_path / "run")
    return tmp_path / "run"


def findings(run: Path, cohort: PreparedCohort) -> dict[str, Finding]:
    return {finding.check: finding for finding in audit_run(run, cohort)}


def severities(run: Path, cohort: PreparedCohort) -> dict[str, str]:
    return {check: finding.severity for check, finding in findings(run, cohort).items()}


def edit(path: Path, change: Callable[[Any], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def edit_predictions(run: Path, change: Callable[[anndata.AnnData], anndata.AnnData]) -> None:
    changed = change(anndata.read_h5ad(run / "predictions.h5ad"))
    changed.write_h5ad(run / "predictions.h5ad")


def test_every_run_of_a_study_passes_every_check(runs: Path, clean: PreparedCohort):
    complete = read_records(runs).complete
    assert len(complete) > 2
    for folder, record in complete:
        assert severities(folder, clean) == CLEAN
        assert findings(folder, clean)["panel"].details["hash"] == record.panel.hash


def test_a_folder_of_runs_is_audited_with_its_cohort_once(runs: Path, clean: PreparedCohort, tmp_path: Path):
    for folder in (network_run(runs), read_records(runs).complete[0].folder):
        shutil.copytree(folder, tmp_path / "runs" / folder.name, dirs_exist_ok=True)
    (tmp_path / "runs" / "stopped").mkdir()
    report = audit(tmp_path / "runs")
    assert not report.leaks
    assert sum(finding.check == "registration" for finding in report.findings) == 1
    subjects = {finding.subject for finding in report.findings}
    assert any(subject.startswith(f"run {network_run(runs).name} (tiny + aux, fold 0)") for subject in subjects)
    unfinished = [finding for finding in report.findings if finding.subject == "stopped"]
    assert [finding.severity for finding in unfinished] == ["information"]
    assert "did not finish" in unfinished[0].sentence


def test_a_patient_on_both_sides_is_a_leak(run: Path, clean: PreparedCohort):
    edit(run / "folds.json", lambda values: values["folds"][0]["train"].update(a=["a2"]))
    found = findings(run, clean)
    assert found["patients"].severity == "leak"
    assert "patient 'a' is in the training and the test set" in found["patients"].sentence
    assert list(found) == CHECKS
    assert {found[check].severity for check in CHECKS[1:]} == {"flag"}


def test_a_patient_on_both_sides_under_two_names_is_a_leak(run: Path, clean: PreparedCohort):
    def rename(values: Any) -> None:
        values["folds"][0]["test"] = {"a": ["a1"]}
        values["folds"][0]["train"]["somebody else"] = ["a2"]

    edit(run / "folds.json", rename)
    finding = findings(run, clean)["patients"]
    assert finding.severity == "leak"
    assert finding.details == {"patients": ["a"]}


def test_epochs_chosen_on_test_spots_are_a_leak(run: Path, clean: PreparedCohort):
    def choose(values: Any) -> None:
        values["folds"][0]["inner_rule"] = "test"

    edit(run / "folds.json", choose)
    finding = findings(run, clean)["protocol"]
    assert finding.severity == "leak"
    assert "which the protocol does not say" in finding.sentence


def test_a_model_trained_on_the_tested_patient_is_a_leak(run: Path, clean: PreparedCohort):
    edit(run / "model" / "config.json", lambda values: values["provenance"].update(training_patients=["b", "a"]))
    assert severities(run, clean) == CLEAN | {"patients": "leak"}


def test_scored_training_spots_are_a_leak(run: Path, clean: PreparedCohort):
    def score_training(predictions: anndata.AnnData) -> anndata.AnnData:
        names = predictions.obs_names.to_numpy(dtype=object)
        names[5] = "b1:0x0"
        predictions.obs_names = names
        return predictions

    edit_predictions(run, score_training)
    assert severities(run, clean) == CLEAN | {"tested spots": "leak"}
    edit_predictions(run, lambda predictions: predictions[:-3])
    edit_predictions(run, lambda predictions: predictions[[i for i in range(len(predictions)) if i != 5]])
    finding = findings(run, clean)["tested spots"]
    assert finding.severity == "flag"
    assert finding.details == {"missing": 4, "foreign": 0}


def other_panel(run: Path, genes: tuple[str, ...]) -> None:
    """Let the record name other main genes."""
    edit(run / "record.json", lambda values: values["panel"].update(hash=content_hash(list(genes))))


def test_a_panel_of_all_spots_is_a_leak(run: Path, clean: PreparedCohort, study: Callable[..., StudyConfig]):
    rule = study().protocol.panel
    (fold,) = read_folds(run / "folds.json")
    everything = fold_panel(rule.model_copy(update={"scope": "cohort"}), clean, fold).main
    assert set(everything) != set(fold_panel(rule, clean, fold).main)
    other_panel(run, everything)
    finding = findings(run, clean)["panel"]
    assert finding.severity == "leak"
    assert "those of all spots, test spots included" in finding.sentence
    assert list(finding.details["files"]) == ["record.json"]


def test_a_panel_of_unknown_origin_is_flagged(run: Path, clean: PreparedCohort):
    other_panel(run, ("G00", "G01"))
    finding = findings(run, clean)["panel"]
    assert finding.severity == "flag"
    assert "nor those of all spots" in finding.sentence


def test_a_model_with_a_panel_of_all_spots_is_a_leak(
    run: Path, clean: PreparedCohort, study: Callable[..., StudyConfig], tmp_path: Path
):
    """The leaky study's model and predictions under the honest study's record."""
    other = trained(study("protocol.panel.scope=cohort", "protocol.leaky=true"), tmp_path / "leaky")
    declared = findings(other, clean)
    assert {declared[check].severity for check in ("protocol", "panel")} == {"leak"}
    assert declared["panel"].details["declared"]
    assert declared["statistics"].severity == "passed"
    for name in ("model", "predictions.h5ad"):
        source, target = other / name, run / name
        if source.is_dir():
            shutil.rmtree(target)
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)
    finding = findings(run, clean)["panel"]
    assert finding.severity == "leak"
    assert set(finding.details["files"]) == {"model/genes.csv", "predictions.h5ad"}


def refit(run: Path, cohort: PreparedCohort, sections: tuple[str, ...], kind: str = "mse") -> None:
    """Export the run's model again, its objective fitted on other sections."""
    loaded = load_model(run / "model")
    column = [cohort.genes.index(gene) for gene in loaded.panel.main]
    counts = [cohort.counts(section)[:, column].toarray() for section in sections]
    library = [cohort.spots(section)["library"].to_numpy(dtype="float32") for section in sections]
    loaded.model.main_objective = make_objective(
        kind, counts=np.concatenate(counts), library=np.concatenate(library), transform=loaded.transform
    )
    save_model(
        run / "model",
        loaded.model,
        panel=loaded.panel,
        transform=loaded.transform,
        preprocessing=loaded.preprocessing,
        provenance=loaded.provenance,
    )


@pytest.mark.parametrize("kind", ["mse", "negative_binomial"])
@pytest.mark.parametrize(
    ("sections", "severity"),
    [
        (("c1", "b1"), "passed"),
        (("a1", "a2", "b1", "c1"), "leak"),
        (("a1", "b1", "c1"), "leak"),
        (("a1", "a2"), "leak"),
        (("b1",), "flag"),
    ],
)
def test_statistics_of_other_spots(run: Path, clean: PreparedCohort, kind: str, sections: tuple[str, ...], severity: str):
    refit(run, clean, sections, kind)
    assert severities(run, clean) == CLEAN | {"statistics": severity}


def test_a_training_mean_of_all_spots_is_a_leak(run: Path, clean: PreparedCohort):
    def pool(predictions: anndata.AnnData) -> anndata.AnnData:
        n = sum(clean.counts(section).shape[0] for section in ("b1", "c1"))
        total = predictions.var["training_mean"] * n + predictions.layers["measured"].sum(axis=0)
        predictions.var["training_mean"] = total / (n + len(predictions))
        return predictions

    edit_predictions(run, pool)
    assert severities(run, clean) == CLEAN | {"statistics": "leak"}


def test_a_value_that_is_not_finite_does_not_pass(run: Path, clean: PreparedCohort):
    def spoil(predictions: anndata.AnnData) -> anndata.AnnData:
        predictions.var.loc[predictions.var_names[2], "training_mean"] = float("nan")
        return predictions

    edit_predictions(run, spoil)
    assert findings(run, clean)["statistics"].severity != "passed"


def test_genes_listed_by_hand_cannot_be_judged(clean: PreparedCohort, study: Callable[..., StudyConfig], tmp_path: Path):
    listed = ["protocol.panel.rule=list", "protocol.panel.genes=[G03, G01, G02]", "model={kind: training_mean}"]
    folder = trained(study(*listed), tmp_path / "runs")
    assert severities(folder, clean) == CLEAN | {"panel": "information"}


def test_edited_configuration_is_flagged(run: Path, clean: PreparedCohort):
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["seed"] = 7
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    assert severities(run, clean) == CLEAN | {"provenance": "flag"}


def test_what_cannot_be_read_is_reported_and_the_rest_checked(run: Path, clean: PreparedCohort):
    (run / "predictions.h5ad").write_bytes(b"nothing")
    (run / "model" / "genes.csv").write_text("gene\n")
    found = findings(run, clean)
    assert {check: found[check].severity for check in ("model", "predictions", "statistics", "tested spots")} == {
        "model": "flag",
        "predictions": "flag",
        "statistics": "flag",
        "tested spots": "information",
    }
    assert found["panel"].severity == "passed"


def test_a_run_of_another_cohort_is_not_judged(run: Path, raw: Callable[..., Any]):
    other = raw({"z1": "z"}).prepared()
    with pytest.raises(DataError, match="was trained on cohort"):
        audit_run(run, other)
    (finding,) = audit(run, cohort=other.path).findings
    assert finding.severity == "flag"
    assert finding.sentence.startswith("not done: ")
    assert read_record(run).cohort.hash in finding.sentence


def test_spots_below_the_protocols_counts_are_no_part_of_the_audit(
    clean: PreparedCohort, study: Callable[..., StudyConfig], tmp_path: Path
):
    depth = int(clean.spots("a1")["library"].median())
    folder = trained(study(f"protocol.min_counts={depth}", "model={kind: training_mean}"), tmp_path / "runs")
    assert severities(folder, clean) == CLEAN


def test_before_training_a_clean_cohort_has_nothing_to_say(clean: PreparedCohort):
    assert check_before_training(clean, (Fold(0, {"b": ("b1",), "c": ("c1",)}, {"a": ("a1", "a2")}),)) == ()


def test_before_training_twins_across_sides_are_refused(raw: Callable[..., Any]):
    planted = raw({"a1": "a", "b1": "b", "c1": "c", "twin": "b"})
    planted.save("twin", planted.read("a1"))
    cohort = planted.prepared()
    apart = Fold(0, {"a": ("a1",), "b": ("b1", "twin")}, {"c": ("c1",)})
    (note,) = check_before_training(cohort, (apart,))
    assert note == "spots with identical counts: 81 in a1 and twin (0x0 = 0x0)"
    with pytest.raises(LeakageError, match=r"train and test in fold 1: 81 in a1 and twin .* take one of them off"):
        check_before_training(cohort, (apart, Fold(1, {"a": ("a1",), "c": ("c1",)}, {"b": ("b1", "twin")})))
    with pytest.raises(LeakageError, match="training and the test set of fold 0: b"):
        check_before_training(cohort, (Fold(0, {"x": ("twin",)}, {"b": ("b1",)}),))


def test_a_fold_of_another_cohort_is_flagged():
    finding = check_sides(Fold(0, {"b": ("b9",)}, {"a": ("a1",)}), {"a1": "a"})
    assert finding.severity == "flag"
    assert "'b9'" in finding.sentence


def test_buffers_are_what_is_compared(runs: Path):
    """The dispersion of a negative binomial is trained, so it is no statistic."""
    objective = load_model(network_run(runs) / "model").model.main_objective
    assert [name for name, _ in objective.named_buffers()] == ["mean", "sd"]
    assert all(torch.isfinite(value).all() for _, value in objective.named_buffers())
