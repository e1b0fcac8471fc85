"""Runs become a model: equal predictions in a fresh process, what was held out beside them, refusals of what does not fit."""

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from small_study import STUDY
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, ModelError
from stexpr.evaluate.records import read_predictions, read_record
from stexpr.models.export import CARD, CONFIG, GENES, WEIGHTS, load_model
from stexpr.models.export.files import INTERVALS, MEMBERS, REFERENCE
from stexpr.train.release import choose_runs, export_runs
from stexpr.train.study import run_study

BY_LABEL = {"tiny": "model.auxiliary.weight=0", "tiny + aux": "model.auxiliary.weight=1"}


@pytest.fixture(scope="module")
def runs(small_cohort: Path, tmp_path_factory: pytest.TempPathFactory, baselines: Callable[[Path], None]) -> Path:
    """All folds of two small models, and of the first a second seed; baselines of fold 0 alone."""
    from stexpr.config import load_study

    folder = tmp_path_factory.mktemp("release")
    path = folder / "study.yaml"
    path.write_text(STUDY.format(cohort=small_cohort))
    baselines(folder / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stexpr.train.spots.BASELINES", ())
        for override in ("model.auxiliary.weight=0", "seed=1 model.auxiliary.weight=0", "model.auxiliary.weight=1"):
            run_study(load_study(path, [*override.split(), "training.epochs=2"]), folder / "runs")
    return folder / "runs"


def exported(runs: Path, folder: Path, **choice):
    return export_runs(choose_runs([runs], **choice), folder)


@pytest.fixture(scope="module")
def ensemble(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ensemble") / "model"
    exported(runs, folder, model="tiny", seed=0)
    return folder


def test_a_fresh_process_predicts_what_the_run_predicted(runs, small_cohort, tmp_path):
    run = choose_runs([runs], model="tiny + aux")[0]
    export_runs([run], tmp_path / "model")
    code = """
import sys, numpy as np, stexpr
from stexpr.data.store import PreparedCohort
from stexpr.inference.patches import run_model
model, cohort = stexpr.load_model(sys.argv[1]), PreparedCohort.open(sys.argv[2])
parts = [cohort.patches(name, model.preprocessing.window_px) for name in cohort.sections_of(model.provenance["test_patients"])]
np.save(sys.argv[3], np.concatenate([output.expression for output in run_model(model, parts)]))
"""
    out = tmp_path / "predicted.npy"
    subprocess.run([sys.executable, "-c", code, tmp_path / "model", small_cohort, out], check=True, timeout=120)
    np.testing.assert_allclose(np.load(out), read_predictions(run.folder).X, atol=1e-6)


def test_one_run_keeps_its_folder_flat_and_says_what_was_held_out(runs, tmp_path):
    run = choose_runs([runs], model="tiny + aux")[0]
    model = export_runs([run], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CARD, CONFIG, GENES, WEIGHTS, INTERVALS, REFERENCE}
    assert model.panel == load_model(run.folder / "model").panel
    assert model.release.symmetries
    assert model.release.scores["pearson"] == pytest.approx(run.record.values["pearson"].value)
    assert model.release.scores["test_patients"] == list(run.record.fold.test_patients)
    assert model.intervals is not None
    assert model.intervals.level == "spot"
    assert model.intervals.n_spots == run.record.n.spots
    card = (tmp_path / CARD).read_text()
    assert f"{run.record.values['pearson'].value:.3f}" in card
    assert "noise ceiling" in card
    assert "not valid for new patients" in card


def test_half_of_the_held_out_spots_lie_in_the_50_percent_intervals(runs, tmp_path):
    run = choose_runs([runs], model="tiny")[0]
    model = export_runs([run], tmp_path)
    adata = read_predictions(run.folder)
    low, high = model.intervals.around(adata.X, 0.5)
    inside = (adata.layers["measured"] >= low) & (adata.layers["measured"] <= high)
    np.testing.assert_allclose(inside.mean(axis=0), 0.5, atol=2 / len(adata))


def test_an_ensemble_is_the_mean_of_its_members(runs, ensemble, small_cohort):
    model = load_model(ensemble)
    members = [load_model(ensemble / MEMBERS / str(i)) for i in range(3)]
    cohort = PreparedCohort.open(small_cohort)
    patches = torch.from_numpy(cohort.patches("a1", 24)[:6]).permute(0, 3, 1, 2)
    output, own = model(patches), [member(patches) for member in members]
    assert output.features.equal(torch.cat([one.features for one in own], dim=1))
    assert model.n_features == sum(member.n_features for member in members)
    torch.testing.assert_close(output.novelty, torch.stack([one.novelty for one in own]).mean(dim=0))
    for column, gene in enumerate(model.genes):
        values = torch.stack(
            [one.expression[:, m.genes.index(gene)] for one, m in zip(own, members, strict=True) if gene in m.genes]
        )
        assert model.n_networks[column] == len(values)
        torch.testing.assert_close(output.expression[:, column], values.mean(dim=0))
        if len(values) > 1:
            torch.testing.assert_close(output.spread[:, column], values.std(dim=0))
        else:
            assert output.spread[:, column].isnan().all()
    with pytest.raises(ModelError, match="ensemble of 3 networks"):
        _ = model.panel


def test_an_ensemble_is_scored_and_calibrated_on_all_patients(runs, ensemble):
    model = load_model(ensemble)
    chosen = choose_runs([runs], model="tiny", seed=0)
    assert sorted(model.release.scores["test_patients"]) == ["a", "b", "c"]
    assert model.intervals.n_patients == 3
    assert model.intervals.n_spots == sum(run.record.n.spots for run in chosen)
    assert sorted(model.provenance["training_patients"]) == ["a", "b", "c"]
    assert (ensemble / GENES).read_text().count("\n") == len(model.genes) + 1
    assert "ensemble of 3 networks" in (ensemble / CARD).read_text()


def test_what_abstaining_is_worth_travels_with_the_model_and_is_drawn(ensemble, tmp_path):
    import stexpr

    curve = load_model(ensemble).release.risk_coverage
    assert curve["patients"] == ["a", "b", "c"]
    assert sum(curve["n_spots"]) == load_model(ensemble).intervals.n_spots
    figure = stexpr.pl.risk_coverage(ensemble, save=tmp_path / "curve.png")
    (axes,) = figure.axes
    drawn = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_allclose(drawn["mean of patients"], np.mean(curve["risk"], axis=0))
    assert (tmp_path / "curve.png").stat().st_size > 5_000
    member = load_model(ensemble / MEMBERS / "0")
    bare = dataclasses.replace(member, release=member.release.model_copy(update={"risk_coverage": None}))
    with pytest.raises(ModelError, match="knows no held-out patches"):
        stexpr.pl.risk_coverage(bare)


def test_seeds_of_all_folds_make_one_ensemble_too(runs, tmp_path):
    model = exported(runs, tmp_path, model="tiny")
    assert len(model.networks) == 6
    assert model.release.scores["n_seeds"] == 2
    assert model.intervals.n_spots == model.release.scores["n_spots"]  # each spot once, its residual averaged over seeds


FILES = (CONFIG, INTERVALS, f"{MEMBERS}/1/{CONFIG}", f"{MEMBERS}/2/{WEIGHTS}", f"{MEMBERS}/0/{REFERENCE}")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", ["changed", "truncated", "missing"])
def test_a_tampered_ensemble_is_refused(ensemble, tmp_path, name, how):
    shutil.copytree(ensemble, tmp_path / "model")
    path = tmp_path / "model" / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2] if how == "truncated" else content[:-3] + b"  ")
    with pytest.raises(ModelError):
        load_model(tmp_path / "model")


def test_folder_names_come_from_numbers_alone(ensemble, tmp_path):
    shutil.copytree(ensemble, tmp_path / "model")
    path = tmp_path / "model" / CONFIG
    config = json.loads(path.read_text())
    config["members"] = "../../etc"
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="members"):
        load_model(tmp_path / "model")


def test_a_model_without_its_cohort_says_what_it_lacks(runs, small_cohort, tmp_path, monkeypatch):
    shutil.copytree(runs, tmp_path / "runs")
    chosen = choose_runs([tmp_path / "runs"], model="tiny", seed=0)[:1]
    path = chosen[0].folder / "config.yaml"
    path.write_text(path.read_text().replace(str(small_cohort), str(tmp_path / "moved")))
    model = export_runs(chosen, tmp_path / "model")
    assert not model.has_reference
    assert "foreign tissue cannot be told" in model.release.notes[0]
    assert export_runs(chosen, tmp_path / "model", cohort=small_cohort).has_reference


def test_another_cohort_is_refused(runs, small_cohort, tmp_path):
    shutil.copytree(small_cohort, tmp_path / "other")
    manifest = tmp_path / "other" / "cohort.json"
    manifest.write_text(manifest.read_text().replace('"name": "', '"name": "other-', 1))
    with pytest.raises(DataError, match="is not the cohort of"):
        export_runs(choose_runs([runs], model="tiny", seed=0)[:1], tmp_path / "model", cohort=tmp_path / "other")


def test_weights_of_another_run_are_refused(runs, tmp_path):
    shutil.copytree(runs, tmp_path / "runs")
    chosen = choose_runs([tmp_path / "runs"], model="tiny", seed=0)
    shutil.rmtree(chosen[0].folder / "model")
    shutil.copytree(choose_runs([runs], model="tiny", seed=1)[0].folder / "model", chosen[0].folder / "model")
    with pytest.raises(ModelError, match="does not give the predictions of its run"):
        export_runs(chosen[:1], tmp_path / "model")


def test_what_is_not_one_study_is_refused(runs, tmp_path):
    with pytest.raises(ModelError, match=r"several models; choose one with --model: tiny, tiny \+ aux"):
        choose_runs([runs])
    with pytest.raises(DataError, match="did you mean 'tiny'"):
        choose_runs([runs], model="tinny")
    with pytest.raises(DataError, match="no finished run of a network with seed 7"):
        choose_runs([runs], seed=7)
    baseline = next(run for run in runs.iterdir() if run.is_dir() and read_record(run).kind == "baseline")
    with pytest.raises(ModelError, match="has no weights"):
        choose_runs([baseline])
    one = choose_runs([runs], model="tiny", seed=0)[0].folder
    with pytest.raises(ModelError, match="twice"):
        choose_runs([one, one])
    unequal = [run for run in choose_runs([runs], model="tiny") if (run.record.seed, run.record.fold.index) != (1, 0)]
    with pytest.raises(ModelError, match="seeds have unlike folds"):
        export_runs(unequal, tmp_path)


@pytest.mark.usefixtures("alone")
def test_a_normalized_cohort_passes_its_stain_on(raw_cohort, tmp_path):
    from stexpr.config import load_study
    from stexpr.data.cards import load_card
    from stexpr.data.prepare import prepare

    card = load_card(raw_cohort)
    prepare(
        card,
        raw_cohort.parent,
        tmp_path / "cohort",
        card.prepare.model_copy(update={"stain": "reinhard", "stain_reference": "a1"}),
    )
    path = tmp_path / "study.yaml"
    path.write_text(STUDY.format(cohort=tmp_path / "cohort"))
    run_study(load_study(path, ["folds=[0]", "training.epochs=1"]), tmp_path / "runs")
    chosen = choose_runs([tmp_path / "runs"])
    for model in (load_model(chosen[0].folder / "model"), export_runs(chosen, tmp_path / "model")):
        assert model.release.stain_reference["kind"] == "reinhard"


def test_the_command_line(runs, tmp_path, capsys):
    from stexpr.cli import app

    app(["export", str(runs), "-o", str(tmp_path / "model"), "--model", "tiny", "--seed", "0"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "an ensemble of 3 networks" in said
    assert "not valid for new patients" in said
