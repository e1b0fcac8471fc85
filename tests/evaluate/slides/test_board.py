"""A slide board of heads whose truth is known: it finds what is planted, and says what it does not know."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_heads import (
    EVERYTHING,
    KI67,
    MUTATION,
    SURVIVAL,
    K,
    simulate_patients,
    write_slide_runs,
)
from sklearn.metrics import roc_auc_score

from stexpr.config.slides import BinaryTarget, SlideProtocol, SlideSplit
from stexpr.errors import ProtocolError
from stexpr.evaluate.records import SlideRun, read_records
from stexpr.evaluate.slides.board import SlideBoard, build_slide_board
from stexpr.evaluate.slides.resampling import Draws
from stexpr.evaluate.slides.results import SlideResults

HEAD, COLOR = "gated_attention on enc features", "gated_attention on enc color"
TWO = {HEAD: 2.0, COLOR: 0.3}
DRAWS = Draws(replicates=40, permutations=59, swaps=79)
RULES = SlideProtocol(
    targets=EVERYTHING,
    split=SlideSplit(k=K),
    confounders=("site", "scanner"),
    subgroups=("sex", "age"),
    published="kather",
)


def board_of(folder: Path, heads: dict[str, float] = TWO, **changes: Any) -> SlideBoard:
    write_slide_runs(folder, heads, **changes)
    return build_slide_board(folder, draws=DRAWS)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_slide_runs(folder, TWO, protocol=RULES)
    return folder


@pytest.fixture(scope="module")
def board(runs: Path) -> SlideBoard:
    return build_slide_board(runs, draws=DRAWS)


def of(board: SlideBoard, target: str, model: str = HEAD) -> pd.Series:
    (row,) = board.targets[(board.targets["target"] == target) & (board.targets["model"] == model)].to_dict("records")
    return pd.Series(row)


def test_the_planted_gene_is_significant_and_the_null_gene_is_not(board: SlideBoard) -> None:
    planted, null, rare = (of(board, name) for name in ("PLANTED", "NULL", "RARE"))
    assert planted["significant"]
    assert planted["q"] == pytest.approx(2 * planted["p"])
    assert not null["significant"]
    assert null["low"] < 0.5 < null["high"]
    assert rare["reason"] == "not tested: 3 positive of 120 patients, needs 5 of each"
    assert np.isnan([rare[name] for name in ("score", "low", "p", "q", "pooled")]).all()
    assert any("1 of 8 targets: RARE (3 positive of 120 patients, needs 5 of each)" in note for note in board.notes)
    assert (
        board.notes[1]
        == f"{HEAD} predicts 1 of 2 yes-or-no targets at a false discovery rate of 5 %: PLANTED ({planted['score']:.3f})."
    )


def test_scores_are_within_folds_and_pooled_ones_stand_apart(board: SlideBoard, runs: Path) -> None:
    tables = []
    for run in read_records(runs).slides:
        if run.record.model_label == HEAD:
            results = SlideResults.read(run.folder)
            outputs, labels = (
                part[(part["target"] == "PLANTED") & (part["part"] == "test")].set_index("patient")["value"]
                for part in (results.outputs, results.labels)
            )
            tables.append(pd.DataFrame({"truth": labels, "value": outputs}).dropna())
    row = of(board, "PLANTED")
    assert row["score"] == pytest.approx(np.mean([roc_auc_score(table["truth"], table["value"]) for table in tables]))
    together = pd.concat(tables)
    assert row["pooled"] == pytest.approx(roc_auc_score(together["truth"], together["value"]))
    assert row["n_patients"] == len(together)
    assert row["interval"] == "95 % bootstrap over patients within folds, conditional on the trained models"
    assert row["low"] < row["score"] < row["high"]


def test_every_kind_of_target_is_ranked_and_held_against_color(board: SlideBoard) -> None:
    assert board.models["model"].tolist() == [HEAD, COLOR]
    assert (board.leader, board.baseline_of(HEAD)) == (HEAD, COLOR)
    tests = board.comparisons.set_index("target")
    assert set(tests.index) == {"mean of 2 targets", "PLANTED", "NULL", "ki67", "OS", "subtype", "grade", "signature"}
    for target in ("PLANTED", "ki67", "subtype", "grade", "signature"):
        assert tests.loc[target, "verdict"] == f"{HEAD} beats {COLOR}"
        assert tests.loc[target, "low"] > 0
    assert tests.loc["NULL", "verdict"] == "no difference shown"
    for name in ("PLANTED", "OS", "grade"):
        assert tests.loc[name, "difference"] == pytest.approx(of(board, name)["score"] - of(board, name, COLOR)["score"])
    mean = np.mean([tests.loc[name, "difference"] for name in ("PLANTED", "NULL")])
    assert tests.loc["mean of 2 targets", "difference"] == pytest.approx(mean)
    assert np.isnan(tests.loc["mean of 2 targets", "low"])
    assert "beats it on PLANTED" in board.notes[0] or "beat their color baseline" in board.notes[0]


def test_survival_is_parted_by_training_thresholds(board: SlideBoard) -> None:
    tests = board.survival.tests.set_index("model")
    assert tests.loc[HEAD, "log_rank_p"] < 0.01
    assert tests.loc[HEAD, "n_low"] + tests.loc[HEAD, "n_high"] == 120
    assert tests.loc[HEAD, "median_low"] > tests.loc[HEAD, "median_high"]
    assert tests.loc[HEAD, "hr_low"] > 1
    assert tests.loc[HEAD, "adjusted_for"] == "site south"
    assert tests.loc[HEAD, "adjusted_hr_low"] > 1
    curve = board.survival.curves.query("model == @HEAD and group == 'high risk'")
    assert (curve["time"].iloc[0], curve["survival"].iloc[0]) == (0, 1)
    assert (np.diff(curve["survival"]) <= 0).all()
    table = board.survival.at_risk.query("model == @HEAD and time == 0")
    assert table["at_risk"].tolist() == [tests.loc[HEAD, "n_low"], tests.loc[HEAD, "n_high"]]
    assert set(board.survival.horizons["time"]) == {0.3, 0.8}


def test_details_look_into_probabilities_numbers_and_groups(board: SlideBoard) -> None:
    details = board.details
    assert set(details.calibration["target"]) == {"PLANTED", "NULL"}
    assert (details.calibration["temperature"] == 2).all()
    bins = details.reliability.query("model == @HEAD and target == 'PLANTED'")
    assert bins["n_patients"].sum() == of(board, "PLANTED")["n_patients"]
    points = details.points.query("model == @HEAD and target == 'ki67'")
    limits = details.agreement.query("model == @HEAD and target == 'ki67'").iloc[0]
    assert limits["bias"] == pytest.approx((points["predicted"] - points["measured"]).mean())
    strata = details.confounders.query("model == @HEAD and target == 'PLANTED'").set_index("confounder")
    assert strata.loc["site", "stratified"] < strata.loc["site", "plain"]
    assert strata.loc["scanner", "reason"] == "the tables have no column scanner"
    ages = details.subgroups.query("model == @HEAD and target == 'ki67' and variable == 'age'")
    assert ages["n_patients"].sum() == 120
    assert len(ages) == 3


def test_a_papers_own_scores_stand_in_a_table_of_their_own(board: SlideBoard, tmp_path: Path) -> None:
    assert set(board.published.columns) == {"model", "target", "pooled", "low", "high", "p", "q", "significant"}
    planted = board.published.set_index(["model", "target"]).loc[(HEAD, "PLANTED")]
    assert planted["pooled"] == pytest.approx(of(board, "PLANTED")["pooled"])
    assert planted["significant"]
    weitz = board_of(tmp_path, protocol=SlideProtocol(targets=(KI67,), split=SlideSplit(k=K), published="weitz"))
    row = weitz.published.set_index("model").loc[HEAD]
    assert row["low"] < row["pooled"] < row["high"]
    assert "p" not in weitz.published


def test_the_text_holds_every_table_and_says_what_is_undefined(board: SlideBoard) -> None:
    text = board.markdown()
    assert text.startswith("# Slide leaderboard: simulated, protocol slides\n")
    for heading in ("Protocol", "Heads", "Yes or no", "Survival by risk group", "As published", "Subgroups of", "Notes"):
        assert f"## {heading}" in text
    assert "conditional on the trained models" in text
    assert f"*{COLOR}*" in text
    assert "nan" not in text
    assert "<NA>" not in text


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    rules = SlideProtocol(
        targets=(BinaryTarget(columns=("PLANTED",)), KI67, SURVIVAL), split=SlideSplit(k=K), published="kather"
    )
    runs = write_slide_runs(tmp_path / "runs", TWO, protocol=rules)
    for order, folder in ((runs, "first"), (runs[::-1], "second")):
        build_slide_board(order, draws=DRAWS).write(tmp_path / folder)
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("first", "second"))
    assert first == second
    assert {"leaderboard.md", "leaderboard.csv", "targets.csv", "forest.png", "volcano.png", "survival.png"} <= set(first)
    assert {"reliability.png", "agreement.png", "survival_curves.csv", "published.csv"} <= set(first)


def test_seeds_and_partitions_are_scored_one_by_one_and_averaged(tmp_path: Path) -> None:
    rules = SlideProtocol(targets=(MUTATION,), split=SlideSplit(k=K, repeats=2))
    both = board_of(tmp_path / "both", protocol=rules, seeds=(0, 1))
    alone = [
        build_slide_board([run for run in read_records(tmp_path / "both").slides if keep(run)], draws=DRAWS)
        for keep in (
            lambda run, seed=seed, repeat=repeat: (run.record.seed, run.record.fold.index // K) == (seed, repeat)
            for seed in (0, 1)
            for repeat in (0, 1)
        )
    ]
    row, rows = of(both, "PLANTED"), [of(one, "PLANTED") for one in alone]
    for name in ("score", "low", "high", "pooled", "p"):
        assert row[name] == pytest.approx(np.mean([one[name] for one in rows]))
    of_seeds = [np.mean([one["score"] for one in rows[:2]]), np.mean([one["score"] for one in rows[2:]])]
    assert row["seed_sd"] == pytest.approx(np.std(of_seeds, ddof=1))
    assert row["interval"].endswith("bounds averaged over 4 cross-validations")
    assert both.models[["n_seeds", "n_partitions"]].iloc[0].tolist() == [2, 2]
    first = both.models.set_index("model").loc[HEAD]
    assert first["score"] == pytest.approx(np.mean([of(both, name)["score"] for name in ("PLANTED", "NULL")]))


def test_incomplete_heads_and_unfinished_runs_are_named(tmp_path: Path) -> None:
    runs = write_slide_runs(tmp_path, {**TWO, "mean on enc features": 1.0})
    lost = next(run for run in runs if run.record.model_label.startswith("mean") and run.record.fold.index == 1)
    (lost.folder / "record.json").unlink()
    board = build_slide_board(tmp_path, draws=DRAWS)
    assert "mean on enc features" not in board.models["model"].tolist()
    assert any(note.startswith("Incomplete, not ranked: mean on enc features, seed 0 lacks fold 1") for note in board.notes)
    assert any(note.startswith("1 runs without a record were not read") for note in board.notes)


def test_what_does_not_belong_together_shares_no_table(tmp_path: Path) -> None:
    write_slide_runs(tmp_path, TWO)
    write_slide_runs(tmp_path, TWO, protocol=SlideProtocol(name="other", targets=(MUTATION,), min_positives=3))
    with pytest.raises(ProtocolError, match="2 protocols"):
        build_slide_board(tmp_path, draws=DRAWS)
    board = build_slide_board(tmp_path, protocol="other", draws=DRAWS)
    board.write(tmp_path / "board")
    other = build_slide_board(tmp_path, protocol="slides", draws=DRAWS)
    with pytest.raises(ProtocolError, match="holds another board"):
        other.write(tmp_path / "board")
    with pytest.raises(ProtocolError, match="no finished run has the cohort"):
        build_slide_board(tmp_path, cohort="else", draws=DRAWS)
    (tmp_path / "empty" / "run").mkdir(parents=True)
    with pytest.raises(ProtocolError, match="no run of slides"):
        build_slide_board(tmp_path / "empty", draws=DRAWS)


def changed(folder: Path, change: Callable[[SlideResults], SlideResults], heads: dict[str, float] = TWO) -> SlideBoard:
    rules = SlideProtocol(targets=(BinaryTarget(columns=("PLANTED",)), KI67), split=SlideSplit(k=K))
    runs = write_slide_runs(folder, heads, protocol=rules)
    for run in runs:
        change(SlideResults.read(run.folder)).write(run.folder)
    return build_slide_board(folder, draws=DRAWS)


def test_a_head_that_says_one_value_is_undefined_and_last(tmp_path: Path) -> None:
    runs: list[SlideRun] = write_slide_runs(tmp_path, TWO, protocol=SlideProtocol(targets=(KI67,)))
    for run in runs:
        if run.record.model_label == HEAD:
            results = SlideResults.read(run.folder)
            dataclasses.replace(results, outputs=results.outputs.assign(value=0.3)).write(run.folder)
    board = build_slide_board(tmp_path, draws=DRAWS)
    assert board.models["model"].tolist() == [COLOR, HEAD]
    assert np.isnan(board.models["score"].iloc[1])
    assert "the metric is not defined for these predictions (constant?)" in of(board, "ki67")["reason"]
    assert board.comparisons["verdict"].iloc[0].startswith("undefined: fold 0")
    assert any("is undefined (–), and ranked last" in note for note in board.notes)
    board.write(tmp_path / "board")


def test_a_board_without_color_baseline_says_so(tmp_path: Path) -> None:
    board = board_of(tmp_path, {HEAD: 2.0})
    assert board.notes[0].startswith("There is no color baseline on this board")
    assert board.baseline_of(HEAD) is None
    assert board.comparisons.empty
    board.write(tmp_path / "board")


def test_without_temperature_or_labels_the_board_stands_and_says_so(tmp_path: Path) -> None:
    def uncalibrated(results: SlideResults) -> SlideResults:
        targets = {
            name: dataclasses.replace(info, temperature=None, notes=("no inner folds",))
            for name, info in results.targets.items()
        }
        labels = results.labels[(results.labels["target"] != "ki67") | (results.labels["part"] == "train")]
        return dataclasses.replace(results, targets=targets, labels=labels)

    board = changed(tmp_path, uncalibrated)
    assert "Not calibrated, PLANTED: no temperature in fold 0, 1, 2 (no inner folds)." in board.notes
    assert "No test patient has a label of ki67." in board.notes
    assert board.targets["target"].unique().tolist() == ["PLANTED"]


def test_other_labels_are_refused(tmp_path: Path) -> None:
    runs = write_slide_runs(tmp_path, TWO)
    results = SlideResults.read(runs[0].folder)
    flipped = results.labels.assign(value=1 - results.labels["value"])
    dataclasses.replace(results, labels=flipped).write(runs[0].folder)
    with pytest.raises(ProtocolError, match="not scored on the same patients and labels"):
        build_slide_board(tmp_path, draws=DRAWS)


def test_many_targets_are_cut_to_the_clearest_and_named(tmp_path: Path) -> None:
    people = simulate_patients()
    rng = np.random.default_rng(3)
    genes = [f"G{i}" for i in range(20)]
    noise = pd.DataFrame((rng.random((120, 20)) < 0.3).astype(float), columns=genes)
    many = dataclasses.replace(people, table=pd.concat([people.table, noise], axis=1))
    rules = SlideProtocol(targets=(BinaryTarget(columns=("PLANTED", *genes)),), split=SlideSplit(k=K))
    board = board_of(tmp_path, protocol=rules, patients=many)
    assert len(board.shown) == 8
    assert "PLANTED" in board.shown
    assert any(note.startswith("21 targets were tested. Compared") for note in board.notes)
    assert of(board, "PLANTED")["p"] == pytest.approx(1 / 840)  # 2 x 21 / .05 shuffles, so that one gene alone can be found
    assert "Shown are 15 of 21 targets" in board.markdown()
    assert board.targets.query("significant and model == @HEAD")["target"].tolist() == ["PLANTED"]
