import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from safetensors.numpy import load_file

from raw_sections import write_raw_cohort, write_raw_section
from stexpr.config import BASELINES, StudyConfig
from stexpr.data.splits import read_folds
from stexpr.data.store import PreparedCohort
from stexpr.errors import ConfigError, DataError, GeneError, LeakageError, TrainingError
from stexpr.evaluate.records import read_record
from stexpr.train.evaluate import evaluate_runs
from stexpr.train.folder import BusyError, exclusive, write_config
from stexpr.train.spots import study_folds
from stexpr.train.study import run_study
from wandb_files import assert_logged

Study = Callable[..., StudyConfig]
Lend = Callable[[Path], None]
Finished = Callable[[Path], list[Path]]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


def test_a_study_from_patches_to_records(study: Study, tmp_path: Path, small_cohort: Path):
    said: list[str] = []
    runs = run_study(study(), tmp_path / "runs", report=said.append)
    assert len(runs) == 3 * (1 + len(BASELINES)) == len(said)
    for index, run in enumerate(runs[:3]):
        record = read_record(run)
        assert record.fold.index == index
        assert record.kind == "network"
        assert record.model_label == "tiny + aux"
        assert record.panel.n_main == 12
        assert record.panel.n_auxiliary == 12
        assert record.panel.scope == "training"
        assert record.epochs is not None
        assert 1 <= record.epochs.chosen <= record.epochs.planned == 3
        assert record.fold.validation == "patient" if index < 2 else "section"
        names = {path.name for path in run.iterdir()}
        assert names >= {"config.yaml", "folds.json", "metrics.jsonl", "model", "predictions.h5ad", "per_gene.parquet"}
        assert "checkpoint.pt" not in names
        (fold,) = read_folds(run / "folds.json")
        assert tuple(fold.test) == record.fold.test_patients
    first = anndata.read_h5ad(runs[0] / "predictions.h5ad")
    assert first.obs["patient"].unique().tolist() == ["a"]
    table = pd.read_parquet(runs[0] / "per_gene.parquet").set_index("gene")
    for gene in first.var_names:
        ours = table.loc[gene, "pearson"]
        theirs = scipy.stats.pearsonr(np.ravel(first[:, gene].X), np.ravel(first[:, gene].layers["measured"])).statistic
        assert ours == pytest.approx(theirs, abs=1e-5)
    counts = PreparedCohort.open(small_cohort).counts("a1").toarray()
    library = counts.sum(axis=1, keepdims=True)
    column = PreparedCohort.open(small_cohort).genes.index(first.var_names[0])
    np.testing.assert_allclose(
        np.ravel(first[:, 0].layers["measured"]), np.log1p(counts[:, [column]] / library * 1e4).ravel(), rtol=1e-5
    )


def test_what_is_done_is_not_done_again(study: Study, tmp_path: Path, finished: Finished):
    config = study("folds=[0]")
    runs = finished(tmp_path / "runs")
    stamps = [(run / "record.json").stat().st_mtime_ns for run in runs]
    said: list[str] = []
    assert run_study(config, tmp_path / "runs", report=said.append) == runs
    assert stamps == [(run / "record.json").stat().st_mtime_ns for run in runs]
    assert all("done before" in line for line in said)


def test_one_spot_under_two_patients_is_refused_before_anything_is_trained(study: Study, tmp_path: Path):
    from stexpr.data.cards import load_card
    from stexpr.data.prepare import prepare

    card = write_raw_cohort(tmp_path / "raw", {"a1": "a", "b1": "b", "c1": "c"})
    write_raw_section(card.parent, "c1", 0)  # the same tissue as a1, under another patient
    loaded = load_card(card)
    assert loaded.prepare is not None
    prepare(loaded, card.parent, tmp_path / "cohort", loaded.prepare)
    with pytest.raises(LeakageError, match=r"identical counts train and test in fold 0: .*a1.*c1"):
        run_study(study(f"cohort={tmp_path / 'cohort'}"), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_studies_of_one_protocol_share_their_baselines(study: Study, tmp_path: Path, finished: Finished):
    with_aux = finished(tmp_path / "runs")
    without = run_study(study("folds=[0]", "model.auxiliary.weight=0", "training.lr=1e-3"), tmp_path / "runs")
    assert with_aux[1:] == without[1:]
    assert with_aux[0] != without[0]


def test_the_color_ridge_finds_the_genes_that_follow_color(tmp_path: Path, finished: Finished):
    runs = {read_record(run).model_label: run for run in finished(tmp_path / "runs")}
    table = pd.read_parquet(runs["color ridge"] / "per_gene.parquet").set_index("gene")
    planted = [gene for gene in table.index if int(gene[1:]) < 12]
    assert table.loc[planted, "pearson"].mean() > 0.6
    others = table.loc[table.index.difference(planted), "pearson"]
    assert others.empty or abs(others.mean()) < 0.35


def test_the_null_baselines_say_what_they_are(tmp_path: Path, finished: Finished):
    records = {record.model["kind"]: record for record in map(read_record, finished(tmp_path / "runs"))}
    r = {kind: record.values["pearson"].value for kind, record in records.items()}
    assert r["training_mean"] is None
    # expression follows color here, spot by spot: neither depth, nor place, nor another gene's color says anything of it
    assert r["color_ridge"] > 0.3
    assert r["nearest_color"] > 0.2
    assert max(abs(r[kind]) for kind in ("depth_only", "spot_coordinates", "neighbor_oracle")) < 0.25
    assert r["permuted_genes"] < r["color_ridge"] - 0.1
    assert records["neighbor_oracle"].kind == "reference"
    assert "sees the measured expression of the test spots" in records["neighbor_oracle"].notes
    assert any("library size of the test spots" in note for note in records["depth_only"].notes)
    assert all(record.wall_time_s < 30 for kind, record in records.items() if kind != "network")


def test_equal_seeds_give_equal_weights_and_others_do_not(study: Study, tmp_path: Path, finished: Finished, baselines: Lend):
    one = finished(tmp_path / "one")[0]
    baselines(tmp_path / "again")
    again = run_study(study("folds=[0]"), tmp_path / "again")[0]
    other = run_study(study("folds=[0]", "seed=1"), tmp_path / "one")[0]
    a, b, c = weights(one), weights(again), weights(other)
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert not all(np.array_equal(a[key], c[key]) for key in a)


def test_without_an_auxiliary_head_nothing_of_it_is_saved(study: Study, tmp_path: Path, baselines: Lend):
    baselines(tmp_path / "runs")
    run = run_study(study("folds=[0]", "model.auxiliary.weight=0"), tmp_path / "runs")[0]
    assert not any(key.startswith("auxiliary") for key in weights(run))
    assert read_record(run).model_label == "tiny"
    assert "auxiliary" not in (run / "model" / "genes.csv").read_text()


@pytest.mark.parametrize("patches_in_memory", ["true", "false"])
def test_where_patches_are_read_changes_nothing(
    study: Study, tmp_path: Path, patches_in_memory: str, finished: Finished, baselines: Lend
):
    memory = finished(tmp_path / "memory")[0]
    baselines(tmp_path / "other")
    other = run_study(study("folds=[0]", f"runtime.patches_in_memory={patches_in_memory}"), tmp_path / "other")[0]
    a, b = weights(memory), weights(other)
    assert memory.name == other.name
    assert all(np.array_equal(a[key], b[key]) for key in a)


TRAIN = "import sys; from stexpr.cli import main; sys.argv = ['stexpr', *sys.argv[1:]]; main()"


def start(config: StudyConfig, folder: Path) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    write_config(folder / "study.yaml", config)
    command = [sys.executable, "-c", TRAIN, "train", str(folder / "study.yaml"), "--runs", str(folder / "runs")]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(folder: Path, n: int) -> None:
    """Wait until the run has written so many epochs."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        for path in folder.glob("runs/*/metrics.jsonl"):
            if path.read_text().count("\n") >= n:
                return
        time.sleep(0.01)
    raise AssertionError(f"no run in {folder} reached {n} epochs")


LONG = (
    "folds=[2]",
    "protocol.validation.splits=2",
    "training.epochs=12",
    "training.patience=12",
    "training.batch_size=8",
    "input.stain_jitter=0.1",
)


@pytest.mark.parametrize(
    ("number", "lines"), [(signal.SIGKILL, 3), (signal.SIGKILL, 10), (signal.SIGTERM, 5), (signal.SIGINT, 13)]
)
def test_a_stopped_run_ends_as_an_uninterrupted_one(
    study: Study, tmp_path: Path, number: signal.Signals, lines: int, uninterrupted: Callable[[StudyConfig], Path]
):
    config = study(*LONG)
    whole = uninterrupted(config)
    stopped = tmp_path / "stopped"
    for run in whole.parent.glob("*/record.json"):
        if run.parent != whole:  # baselines, which nothing interrupts here
            shutil.copytree(run.parent, stopped / "runs" / run.parent.name)
    process = start(config, stopped)
    try:
        wait_for_lines(stopped, lines)
    finally:
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert process.returncode == -number
    else:
        assert process.returncode == 128 + number
        assert errors.strip().splitlines()[-1].startswith(f"stexpr: stopped by {number.name}; the state is saved")
    (run,) = [path.parent for path in stopped.glob("runs/*/checkpoint.pt")]
    assert not (run / "record.json").exists()

    process = start(config, stopped)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    one, other = read_record(whole), read_record(run)
    assert one.values == other.values
    assert one.epochs == other.epochs
    a, b = weights(whole), weights(run)
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert (whole / "metrics.jsonl").read_text() == (run / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StudyConfig], Path]:
    """Train once for all the interrupted runs to be compared with."""
    folder = tmp_path_factory.mktemp("whole")
    done: list[Path] = []

    def run(config: StudyConfig) -> Path:
        if not done:
            process = start(config, folder)
            output, errors = process.communicate(timeout=240)
            assert process.returncode == 0, output + errors
            done.extend(path.parent for path in folder.glob("runs/*/model"))
        return done[0]

    return run


def test_evaluate_gets_the_numbers_on_record_and_notices_changes(tmp_path: Path, finished: Finished):
    run = finished(tmp_path / "runs")[0]
    lines = list(evaluate_runs(tmp_path / "runs"))
    assert len(lines) == 1 + len(BASELINES)
    assert all("as recorded" in line for line in lines)
    (run / "per_gene.parquet").unlink()
    assert len(list(evaluate_runs(run))) == 1
    assert (run / "per_gene.parquet").exists()
    predictions = anndata.read_h5ad(run / "predictions.h5ad")
    predictions.X = predictions.X[::-1].copy()
    predictions.write_h5ad(run / "predictions.h5ad")
    with pytest.raises(DataError, match=r"the predictions give pearson = .*, the record says"):
        list(evaluate_runs(run))
    (run / "predictions.h5ad").write_bytes(b"torn")
    with pytest.raises(DataError, match="cannot be read"):
        list(evaluate_runs(run))
    (run / "predictions.h5ad").unlink()
    with pytest.raises(DataError, match="lacks predictions"):
        list(evaluate_runs(run))
    with pytest.raises(DataError, match="no finished run"):
        list(evaluate_runs(tmp_path))


def test_evaluate_notices_a_changed_table(tmp_path: Path, finished: Finished):
    run = finished(tmp_path / "runs")[0]
    table = pd.read_parquet(run / "per_gene.parquet")
    table["pearson"] += 0.1
    table.to_parquet(run / "per_gene.parquet", index=False)
    with pytest.raises(DataError, match="does not hold the scores"):
        list(evaluate_runs(run))


def test_wandb_mirrors_a_run_offline(
    study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: Finished, baselines: Lend
):
    baselines(tmp_path / "runs")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = run_study(study("folds=[0]", "runtime.tracker=wandb"), tmp_path / "runs")[0]
    assert_logged(run, b"tiny-aux-f0-s0", b"val/pearson", b"per_gene", b"cohort_hash")
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/maps/*.png"))) == 3
    assert read_record(run).values == read_record(finished(tmp_path / "plain")[0]).values


@pytest.mark.parametrize("loss", ["mse_pearson", "negative_binomial"])
def test_other_losses_learn_too(study: Study, tmp_path: Path, loss: str, baselines: Lend):
    baselines(tmp_path / "runs")
    run = run_study(study("folds=[0]", f"model.loss={loss}", "training.epochs=6"), tmp_path / "runs")[0]
    record = read_record(run)
    value = record.values["pearson"].value
    assert value is not None
    assert value > 0.15
    assert record.model_label == f"tiny + aux {loss.replace('_', ' ')}"


@pytest.mark.usefixtures("alone")
def test_several_inner_partitions_choose_one_epoch(study: Study, tmp_path: Path):
    run = run_study(study("folds=[0]", "protocol.validation.splits=2"), tmp_path / "runs")[0]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(line["phase"] for line in lines)) == ["inner 0", "inner 1", "final"]
    curves = [[line["val/pearson"] for line in lines if line["phase"] == f"inner {i}"] for i in (0, 1)]
    epochs = read_record(run).epochs
    assert epochs is not None
    assert epochs.chosen == int(np.mean(curves, axis=0).argmax()) + 1
    assert sum(line["phase"] == "final" for line in lines) == epochs.chosen


@pytest.mark.usefixtures("alone")
def test_without_refit_the_best_weights_are_kept(study: Study, tmp_path: Path):
    run = run_study(study("folds=[0]", "protocol.validation.refit=false", "training.epochs=5"), tmp_path / "runs")[0]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert {line["phase"] for line in lines} == {"inner 0"}
    epochs = read_record(run).epochs
    assert epochs is not None
    assert epochs.chosen == int(np.argmax([line["val/pearson"] for line in lines])) + 1


def test_patience_ends_an_inner_training(study: Study, tmp_path: Path, baselines: Lend):
    baselines(tmp_path / "runs")
    overrides = ("folds=[0]", "training.epochs=40", "training.patience=1", "training.lr=1e-9", "training.clip_norm=null")
    run = run_study(study(*overrides), tmp_path / "runs")[0]
    inner = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if "inner" in line]
    assert len(inner) < 40


@pytest.mark.usefixtures("alone")
def test_epochs_set_in_advance(study: Study, tmp_path: Path):
    run = run_study(study("folds=[0]", "protocol.validation.rule=epochs"), tmp_path / "runs")[0]
    record = read_record(run)
    assert record.fold.validation == "epochs"
    assert record.epochs is not None
    assert record.epochs.chosen == 3


def test_a_loss_that_is_not_finite_names_its_place(study: Study, tmp_path: Path, baselines: Lend):
    baselines(tmp_path / "runs")
    config = study("folds=[0]", "training.lr=1e30", "training.optimizer=sgd", "training.clip_norm=null")
    with pytest.raises(TrainingError) as caught:
        run_study(config, tmp_path / "runs")
    message = str(caught.value)
    assert "at epoch 1, step" in message
    assert "a batch of 16: " in message
    assert "in fold 0, inner 0 training" in message


def test_the_trainer_never_opens_a_test_section(study: Study, tmp_path: Path, small_cohort: Path, monkeypatch, baselines: Lend):
    """While weights, panel, scaler and epoch are fitted, no count and no patch of the test patient is read.

    Before that the audit reads the counts of all sections, for spots that stand on two sides.
    """
    baselines(tmp_path / "runs")
    read: list[str] = []
    fitting = [False]
    for method in ("counts", "patches", "patch_reader", "spots"):
        original = getattr(PreparedCohort, method)

        def spy(self, section, *args, original=original, **kwargs):
            if fitting[0]:
                read.append(section)
            return original(self, section, *args, **kwargs)

        monkeypatch.setattr(PreparedCohort, method, spy)
    from stexpr.train import run as module
    from stexpr.train import spots as studies

    audit = studies.check_before_training

    def audited(*args):
        notes = audit(*args)
        fitting[0] = True
        return notes

    monkeypatch.setattr(studies, "check_before_training", audited)
    training = module.NetworkTraining.run

    def trained(self, *args, **kwargs):
        result = training(self, *args, **kwargs)
        fitting[0] = False
        return result

    monkeypatch.setattr(module.NetworkTraining, "run", trained)
    run_study(study("folds=[0]"), tmp_path / "runs")
    assert set(read) == {"b1", "c1", "c2"}


def test_panel_and_scaler_do_not_change_with_the_test_patient(
    study: Study, tmp_path: Path, small_cohort: Path, finished: Finished, request: pytest.FixtureRequest
):
    """The model of fold 0 is bit-equal when the test patient's counts are shuffled."""
    import h5py

    changed = tmp_path / "changed"
    shutil.copytree(small_cohort, changed)
    with h5py.File(changed / "st" / "a1.h5ad", "r+") as file:
        data = file["X/data"]
        data[...] = data[...][::-1]
    one = finished(tmp_path / "one")[0]
    request.getfixturevalue("alone")  # from here on
    other = run_study(study("folds=[0]", f"cohort={changed}"), tmp_path / "other")[0]
    a, b = weights(one), weights(other)
    assert all(np.array_equal(a[key], b[key]) for key in a)
    assert (one / "model" / "genes.csv").read_text() == (other / "model" / "genes.csv").read_text()


@pytest.mark.usefixtures("alone")
def test_a_gene_included_by_name_is_main_and_its_detection_said(study: Study, tmp_path: Path):
    run = run_study(study("folds=[0]", "protocol.panel.include=[G23]", "protocol.panel.n_main=6"), tmp_path / "runs")[0]
    (note,) = [note for note in read_record(run).notes if "included by name" in note]
    assert note.startswith("G23, included by name, is detected in ")
    assert (run / "model" / "genes.csv").read_text().splitlines()[1].startswith("G23,main,")


@pytest.mark.usefixtures("alone")
def test_cohort_scope_is_named_in_the_record(study: Study, tmp_path: Path):
    run = run_study(study("folds=[0]", "protocol.panel.scope=cohort", "protocol.leaky=true"), tmp_path / "runs")[0]
    assert read_record(run).panel.scope == "cohort"


@pytest.mark.parametrize(
    ("overrides", "error", "message"),
    [
        (("folds=[7]",), ConfigError, "fold 7, but the study has folds 0 to 2"),
        (("protocol.panel.n_main=250",), GeneError, "asks for 250 main genes, but only"),
        (("protocol.panel.include=[G00, NOPE]",), GeneError, "gene 'NOPE' of the panel is not in the cohort"),
        (("input.window_px=64",), DataError, "larger than the patches"),
        (("cohort=/nowhere",), DataError, "nowhere"),
    ],
)
def test_bad_input_is_one_clear_error(study: Study, tmp_path: Path, overrides, error, message: str):
    with pytest.raises(error, match=message):
        run_study(study(*overrides), tmp_path / "runs")


def test_folds_come_back_from_a_file(study: Study, tmp_path: Path, small_cohort: Path, finished: Finished):
    config = study("folds=[0]")
    run = finished(tmp_path / "runs")[0]
    again = study("protocol.split.rule=file", f"protocol.split.file={run / 'folds.json'}")
    cohort = PreparedCohort.open(small_cohort)
    assert study_folds(again, cohort) == study_folds(config, cohort)[:1]


def test_a_read_only_folder(study: Study, tmp_path: Path):
    if os.geteuid() == 0:
        blocked = tmp_path / "file"
        blocked.write_text("not a folder")
        with pytest.raises((DataError, OSError)):
            run_study(study("folds=[0]"), blocked / "runs")
        return
    tmp_path.chmod(0o500)
    with pytest.raises((DataError, OSError)):
        run_study(study("folds=[0]"), tmp_path / "runs")


def test_a_baseline_that_another_process_makes_is_left_to_it(study: Study, tmp_path: Path, baselines: Lend):
    baselines(tmp_path)
    config = study("model={kind: training_mean}", "folds=[0]")
    first, *_ = run_study(config, tmp_path)
    (first / "record.json").unlink()
    lines: list[str] = []
    with exclusive(first):
        done = run_study(config, tmp_path, report=lines.append)
    assert first not in done
    assert any("training mean, fold 0: left to another process" in line for line in lines)
    network, *_ = run_study(study("folds=[0]", "training.epochs=1"), tmp_path)
    (network / "record.json").unlink()
    with exclusive(network), pytest.raises(BusyError, match="is being trained by"):
        run_study(study("folds=[0]", "training.epochs=1"), tmp_path)


def test_genes_that_share_factors_are_exported_and_predicted_as_such(study: Study, tmp_path: Path):
    from stexpr.models.export import load_model

    options = ("model.rank=3", "model.loss=huber", "model.auxiliary.n_genes=4")
    run = run_study(study("folds=[0]", *options), tmp_path / "runs")[0]
    model = load_model(run / "model").model
    assert (read_record(run).model_label, read_record(run).panel.n_auxiliary) == ("tiny + aux of 4 genes huber rank 3", 4)
    assert weights(run)["auxiliary_head.weight"].shape[0] == 4
    predicted = anndata.read_h5ad(run / "predictions.h5ad").X
    centered = (predicted - model.main_objective.mean.numpy()) / model.main_objective.sd.numpy()
    assert np.linalg.matrix_rank(centered, tol=1e-3 * np.linalg.norm(centered)) <= 3
    assert weights(run)["main_head.components"].shape == (3, 12)
