"""Boards from real run folders: order, words, refusals, and the same bytes twice."""

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from planted_runs import MODELS, make_predictions, make_record

from stexpr.config import ProtocolConfig
from stexpr.errors import DataError, ProtocolError
from stexpr.evaluate.leaderboard import build_leaderboard, leaderboard
from stexpr.evaluate.records import Run, write_record
from stexpr.evaluate.score import Scores, read_per_gene, read_replicates, score

Write = Callable[..., list[Run]]
NULLS = ["color ridge, genes permuted", "depth only", "nearest training patch by color", "spot coordinates"]
ORACLE = "neighbor oracle (sees the test data)"
ORDER = ["tiny", "color ridge", *NULLS, "training mean", ORACLE]


def change(run: Run, **changes: Any) -> Run:
    record = make_record(**{**run.record.model_dump(mode="json"), **changes})
    write_record(run.folder, record)
    return Run(run.folder, record)


def of(runs: list[Run], label: str) -> list[Run]:
    return [run for run in runs if run.record.model_label == label]


def test_models_are_ranked_by_r_and_the_undefined_comes_last(write_runs: Write) -> None:
    board = leaderboard(write_runs())
    assert board.models["model"].tolist() == ORDER
    assert board.models["rank"].tolist() == [1, 2, 3, 4, 5, 6, 7, pd.NA]
    top, last = board.models.iloc[0], board.models.iloc[-2]
    assert top["r_low"] < top["r"] < top["r_high"]
    assert top["interval"] == "95 % spatial-block bootstrap, these sections only"
    assert np.isnan(last["r"])
    assert pd.isna(last["interval"])
    assert last["r2"] == pytest.approx(0)
    assert board.patients.columns.tolist() == ["A", "B", "C"]
    assert board.patients.loc["tiny"].mean() == pytest.approx(top["r"])
    assert any("training mean predicts one value" in note for note in board.notes)
    text = board.markdown()
    assert "| 7 | *training mean* | – | – |" in text
    assert f"| – | *{ORACLE}* | 0." in text
    assert board.models["r"].iloc[-1] > top["r"]  # what sees the test data does not lead, however good
    assert board.genes.columns[8] == "tiny"


def test_the_board_agrees_with_the_score_tables(write_runs: Write) -> None:
    runs = write_runs()
    board = leaderboard(runs)
    tables = pd.concat(pd.read_parquet(run.folder / "per_gene.parquet") for run in of(runs, "tiny"))
    assert board.models["r"][0] == pytest.approx(tables["pearson"].mean())  # one section per patient: the plain mean
    by_gene = tables.groupby("gene")["pearson"].mean()
    assert board.genes["tiny"].is_monotonic_decreasing
    assert board.genes.set_index("gene")["tiny"].to_dict() == pytest.approx(by_gene.to_dict())


def test_the_markdown_starts_with_the_protocol_and_ends_with_the_notes(write_runs: Write) -> None:
    text = leaderboard(write_runs()).markdown()
    places = [
        text.index(word)
        for word in ("## Protocol", "## Models", "## Beyond r", "## r by", "## Compared", "## Genes", "## Notes")
    ]
    assert places == sorted(places)
    for word in ("planted (c0); species mouse", "leave one patient out", "fold 0: A", "held-out training patients"):
        assert word in text
    assert "the patients whose fold's panel holds it" in text
    assert "not testable: n = 3, needs ≥ 7" in text
    assert "nan" not in text.lower().replace("finance", "")
    assert "None" not in text


def test_written_twice_the_texts_are_the_same_bytes(write_runs: Write, tmp_path: Path) -> None:
    runs = write_runs()
    leaderboard(runs).write(tmp_path / "one")
    leaderboard(runs[::-1]).write(tmp_path / "two")
    names = ["comparisons.csv", "leaderboard.csv", "leaderboard.md", "leaderboard.png", "patients.csv", "per_gene.csv"]
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes(), name
    table = pd.read_csv(tmp_path / "one" / "leaderboard.csv")
    assert table["r_patient_B"].notna().tolist() == [label != "training mean" for label in ORDER]
    assert table["genes_median_r_above_0"][0] == 12
    genes = pd.read_csv(tmp_path / "one" / "per_gene.csv")
    ceilings = ["ceiling", "ceiling_low", "ceiling_high", "ceiling_depth_blind", "unpredictable"]
    assert genes.columns.tolist() == ["rank", "gene", "n_patients", *ceilings, *ORDER]


def test_the_folder_of_another_board_is_refused(write_runs: Write, tmp_path: Path) -> None:
    board = leaderboard(write_runs())
    board.write(tmp_path)
    before = (tmp_path / "leaderboard.csv").read_bytes()
    other = dataclasses.replace(board, title="another cohort, protocol stexpr")
    with pytest.raises(ProtocolError, match=r"holds another board .* give another folder"):
        other.write(tmp_path)
    assert (tmp_path / "leaderboard.csv").read_bytes() == before
    board.write(tmp_path)


def test_seeds_of_a_model_are_averaged_and_their_spread_shown(write_runs: Write) -> None:
    runs = write_runs(seeds=(0, 1, 2))
    board = leaderboard(runs)
    row = board.models.iloc[0]
    per_seed = [
        pd.concat(pd.read_parquet(run.folder / "per_gene.parquet") for run in of(runs, "tiny") if run.record.seed == seed)
        for seed in range(3)
    ]
    values = [table["pearson"].mean() for table in per_seed]
    assert row["n_seeds"] == 3
    assert row["r"] == pytest.approx(np.mean(values))
    assert row["r_seed_sd"] == pytest.approx(np.std(values, ddof=1))
    assert f"3 ({row['r_seed_sd']:.3f})" in board.markdown()
    assert row["minutes"] == pytest.approx(3)  # three folds of one minute; the mean over seeds, not their sum


@pytest.mark.parametrize(
    ("strength", "words"),
    [(0.9, "1 of 1 networks beat the color ridge"), (0.2, "No network beats the color ridge. The best, tiny: mean r -0.")],
)
def test_it_says_whether_the_network_beats_the_color_ridge(write_runs: Write, strength: float, words: str) -> None:
    board = leaderboard(write_runs({**MODELS, "tiny": (strength, {})}))
    assert board.notes[0].startswith(words)


def test_a_difference_within_its_interval_is_no_win(write_runs: Write) -> None:
    def shake(predictions: anndata.AnnData, label: str, fold: int) -> None:
        if label == "tiny":
            noise = np.random.default_rng([7, fold]).normal(0, 0.35, predictions.shape)
            predictions.X = predictions.X + noise.astype(np.float32)

    board = leaderboard(write_runs({**MODELS, "tiny": (0.44, {})}, change=shake))
    note = board.notes[0]
    assert note.startswith("No network beats the color ridge")
    assert "these sections only" in note


def test_a_collapsed_network_beats_nothing(write_runs: Write) -> None:
    board = leaderboard(write_runs({**MODELS, "tiny": (0.0, {})}))
    assert board.notes[0] == "No network has a defined r, so none beats the color ridge."


def test_constant_genes_are_named_and_counted(write_runs: Write) -> None:
    def flatten(predictions: anndata.AnnData, label: str, fold: int) -> None:
        if fold == 1:
            predictions.layers["measured"][:, 3] = 0
        if label == "tiny":
            predictions.X[:, 5] = 1

    board = leaderboard(write_runs(change=flatten))
    assert any("constant in the section: GENE3 (B1)" in note for note in board.notes)
    assert any(note == "tiny predicts a constant for 3 gene × section, which enter its mean r as 0." for note in board.notes)
    genes = board.genes.set_index("gene")
    assert genes.loc["GENE3", "n_patients"] == 2
    assert np.isnan(genes.loc["GENE5", "tiny"])
    assert genes.index[-1] == "GENE5"


def test_models_of_one_label_are_told_apart_by_what_differs(write_runs: Write) -> None:
    slow = {"model_label": "tiny", "settings": {"input": {"window_px": 64}, "training": {"lr": 0.01}}}
    board = leaderboard(write_runs({**MODELS, "slow": (0.5, slow)}))
    assert board.models["model"].tolist()[:2] == ["tiny (lr=0.001)", "tiny (lr=0.01)"]


def test_a_setting_that_came_later_names_only_the_model_that_has_it(write_runs: Write) -> None:
    later = {"model_label": "tiny", "settings": {"input": {"window_px": 64}, "training": {"lr": 0.001, "mixup": 0.2}}}
    board = leaderboard(write_runs({**MODELS, "later": (0.5, later)}))
    assert sorted(board.models["model"].tolist()[:2]) == ["tiny", "tiny (mixup=0.2)"]


def test_a_model_without_a_fold_is_listed_not_ranked(write_runs: Write) -> None:
    runs = write_runs({**MODELS, "wide": (0.9, {"model": {"kind": "network", "backbone": "wide"}})}, seeds=(0, 1))
    cut = [run for run in runs if not (run.record.model_label == "wide" and run.record.fold.index == 2)]
    cut = [run for run in cut if not (run.record.model_label == "tiny" and run.record.seed == 1 and run.record.fold.index < 2)]
    board = leaderboard(cut)
    assert board.models["model"].tolist() == ORDER
    assert board.models["n_seeds"][0] == 1
    assert "Incomplete, not ranked: tiny, seed 1 lacks fold 0, 1; start its study again." in board.notes
    assert "Incomplete, not ranked: wide, seed 0 lacks fold 2; start its study again." in board.notes


@pytest.mark.parametrize("missing", ["color ridge", "training mean", "depth only", "spot coordinates"])
def test_a_missing_baseline_is_refused_with_the_command(write_runs: Write, missing: str) -> None:
    runs = write_runs()
    with pytest.raises(ProtocolError, match=f"{missing}; run stexpr train on the same study, which adds them"):
        leaderboard([run for run in runs if run.record.model_label != missing])
    with pytest.raises(ProtocolError, match=f"the baseline {missing} lacks folds"):
        leaderboard([run for run in runs if run.record.model_label != missing or run.record.fold.index])


def test_unlike_protocols_are_refused_and_can_be_chosen(write_runs: Write, tmp_path: Path) -> None:
    runs = write_runs()
    other = ProtocolConfig(name="other", pooling="pooled").decisive()
    mixed = [*runs[1:], change(runs[0], protocol=other, protocol_hash=ProtocolConfig.model_validate(other).hash)]
    with pytest.raises(ProtocolError, match=r"2 protocols.*pooling: .*never share a table; choose one with --protocol"):
        leaderboard(mixed)
    with pytest.raises(ProtocolError, match="no finished run has the protocol 'stexp'; did you mean 'stexpr'"):
        build_leaderboard(tmp_path / "runs", protocol="stexp")
    with pytest.raises(ProtocolError, match="baselines are missing"):
        build_leaderboard(tmp_path / "runs", protocol="other", cohort="planted")
    # the choice leaves the model whose fold moved away incomplete
    assert any("tiny, seed 0 lacks fold 0" in note for note in build_leaderboard(tmp_path / "runs", protocol="stexpr").notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"task": "ki67"}, "2 tasks"),
        ({"cohort": {"name": "planted", "hash": "c1", "patients": ["A"]}}, "2 cohorts.*--cohort"),
        ({"split_hash": "s1"}, "2 splits"),
        ({"scoring": {"seed": 1}}, "2 scoring settings.* stexpr evaluate --refresh"),
        ({"panel": {**make_record().panel.model_dump(), "hash": "px"}}, "fold 0 has 2 gene panels"),
        ({"fold": {"index": 0, "test_patients": ["B"], "validation": "patient"}}, "fold 0 has 2 sets of test patients"),
    ],
)
def test_what_never_shares_a_table(write_runs: Write, changes: dict[str, Any], words: str) -> None:
    runs = write_runs()
    with pytest.raises(ProtocolError, match=words):
        leaderboard([change(runs[0], **changes), *runs[1:]])


def test_two_runs_of_one_cell(write_runs: Write, tmp_path: Path) -> None:
    runs = write_runs()
    shutil.copytree(runs[0].folder, tmp_path / "runs" / "copy")
    copy = Run(tmp_path / "runs" / "copy", runs[0].record)
    board = leaderboard([*runs, copy])
    assert any("second copy" in note for note in board.notes)
    pd.testing.assert_frame_equal(board.models, leaderboard(runs).models)
    with pytest.raises(ProtocolError, match=r"tiny, seed 0, fold 0 has two runs of unlike configuration"):
        leaderboard([*runs, change(copy, config_hash="other")])


def test_unlike_spots_are_refused(write_runs: Write) -> None:
    def lose(predictions: anndata.AnnData, label: str, fold: int) -> None:
        if label == "color ridge" and fold == 2:
            predictions._inplace_subset_obs(np.arange(80))

    with pytest.raises(
        ProtocolError, match=r"color ridge, genes permuted and color ridge are not scored on the same spots and genes in fold 2"
    ):
        leaderboard(write_runs(change=lose))


def test_unfinished_and_broken_runs_are_named(write_runs: Write, tmp_path: Path) -> None:
    runs = write_runs()
    (tmp_path / "runs" / "started").mkdir()
    notes = build_leaderboard(tmp_path / "runs").notes
    assert any(note.startswith("1 runs without a record were not read: started has no record.json") for note in notes)
    assert not any(str(tmp_path) in note for note in notes)
    (runs[0].folder / "per_gene.parquet").unlink()
    with pytest.raises(DataError, match=r"per_gene\.parquet is missing though its run has a record"):
        build_leaderboard(tmp_path / "runs")


def test_nothing_finished(tmp_path: Path) -> None:
    (tmp_path / "runs" / "started").mkdir(parents=True)
    with pytest.raises(ProtocolError, match=r"none of 1 runs in .* finished; start stexpr train again"):
        build_leaderboard(tmp_path / "runs")
    with pytest.raises(ProtocolError, match="no finished run to compare"):
        leaderboard([])


def test_unlike_numbers_of_replicates_are_explained(write_runs: Write) -> None:
    runs = write_runs()
    drawn = read_replicates(runs[0].folder)
    base = score(make_predictions(), n_replicates=5)
    Scores(read_per_gene(runs[0].folder), drawn[:, :50], base.aggregate, base.summary, base.n, ()).write(runs[0].folder)
    with pytest.raises(DataError, match=r"unlike numbers of bootstrap replicates .* delete their"):
        leaderboard(runs)


def test_six_patients_need_no_replicates(write_runs: Write) -> None:
    runs = write_runs(folds=6, replicates=5)
    for run in runs:
        (run.folder / "bootstrap.parquet").unlink()
    board = leaderboard(runs)
    assert board.models["interval"][0] == "95 % t over patients"


def test_five_hundred_records_take_less_than_ten_seconds(write_runs: Write, tmp_path: Path) -> None:
    runs = write_runs(genes=250, replicates=1000)
    tiny = of(runs, "tiny")
    for seed in range(1, 165):
        for run in tiny:
            folder = tmp_path / "runs" / f"{run.folder.name}-{seed}"
            folder.mkdir()
            for name in ("per_gene.parquet", "bootstrap.parquet"):
                (folder / name).hardlink_to(run.folder / name)
            model = {"kind": "network", "backbone": f"tiny{seed % 40}"}
            label = f"tiny{seed % 40}"
            values = {**run.record.model_dump(mode="json"), "seed": seed, "model": model, "model_label": label}
            write_record(folder, make_record(**{**values, "config_hash": folder.name}))
    start = time.process_time()
    board = build_leaderboard(tmp_path / "runs")
    took = time.process_time() - start
    assert len(board.models) == 48
    assert took < 10, f"{took:.1f} s"


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        (ProtocolConfig(pooling="pooled"), "WHICH REWARDS DIFFERENCES BETWEEN PATIENTS"),
        (ProtocolConfig.model_validate({"leaky": True, "panel": {"scope": "cohort"}}), "TEST SPOTS INCLUDED"),
        (ProtocolConfig.model_validate({"panel": {"include": ["MKI67"]}}), "MKI67 always included"),
        (ProtocolConfig.model_validate({"panel": {"rule": "list", "genes": ["G"]}}), "a given list of 12 genes"),
        (ProtocolConfig.model_validate({"panel": {"rule": "highly_variable"}}), "most variable genes"),
        (ProtocolConfig.model_validate({"panel": {"rule": "spatially_variable"}}), "highest Moran's I within sections"),
        (ProtocolConfig.model_validate({"expression": {"kind": "stnet"}}), "as ST-Net"),
        (ProtocolConfig.model_validate({"split": {"rule": "fixed", "test_patients": ["A"]}}), "fixed test patients: A"),
        (ProtocolConfig.model_validate({"split": {"rule": "grouped_kfold", "k": 3}}), "3 folds over patients"),
    ],
)
def test_the_protocol_in_words(protocol: ProtocolConfig, words: str, write_runs: Write) -> None:
    runs = write_runs(folds=1)
    values = {"protocol": protocol.decisive(), "protocol_hash": protocol.hash}
    text = leaderboard([change(run, **values) for run in runs]).markdown()
    assert words in text


def test_settings_without_words_are_printed_as_they_are(write_runs: Write) -> None:
    from stexpr.config import content_hash

    protocol = {"name": "later", "smoothing": {"radius_um": 100}}
    runs = [change(run, protocol=protocol, protocol_hash=content_hash(protocol)) for run in write_runs(folds=1)]
    assert "| **Further settings** | smoothing.radius_um = 100 |" in leaderboard(runs).markdown()


def test_networks_that_choose_no_epochs_say_so(write_runs: Write) -> None:
    runs = write_runs(
        {**MODELS, "tiny": (0.7, {"fold": {"index": 0, "test_patients": ["A"], "validation": "epochs"}})}, folds=1
    )
    assert "| **Number of epochs** | set in advance (rule auto) |" in leaderboard(runs).markdown()


def test_baselines_alone_make_a_board(write_runs: Write) -> None:
    board = leaderboard(write_runs({label: MODELS[label] for label in MODELS if label != "tiny"}, folds=2))
    assert "no network on this board" in board.markdown()
    assert board.models["kind"].tolist() == ["baseline"] * 6 + ["reference"]


def test_ceilings_stand_beside_r_and_bound_no_model_that_sees_the_data(write_runs: Write) -> None:
    board = leaderboard(write_runs())
    row = board.models.iloc[0]
    genes = board.genes.set_index("gene")
    assert genes["ceiling"].between(0.3, 1).all()
    assert (genes["ceiling_low"] <= genes["ceiling"]).all()
    assert (genes["ceiling"] <= genes["ceiling_high"]).all()
    assert not genes["unpredictable"].any()
    assert row["ceiling"] == pytest.approx(genes["ceiling"].mean())
    assert row["r_over_ceiling"] == pytest.approx(genes["tiny"].mean() / genes["ceiling"].mean())
    assert board.models["ceiling"].nunique() == 1  # it belongs to the data, not to the model
    assert "bounds the noise of counting only" in board.markdown()


def test_models_are_tested_over_patients(write_runs: Write) -> None:
    few = leaderboard(write_runs())
    untestable = few.comparisons["verdict"].str.startswith("not testable: n = 3, needs ≥ ")
    undefined = few.comparisons["verdict"] == "undefined: no r of one model for A, B, C"
    assert (untestable | undefined).all()
    assert few.comparisons.loc[undefined, "a"].tolist() == ["training mean"]
    assert not few.comparisons[["a", "b"]].isin([ORACLE]).any(axis=None)
    assert any(", tiny against the color ridge: not testable: n = 3, needs ≥ " in note for note in few.notes)


def test_ten_patients_can_show_which_model_is_better(write_runs: Write) -> None:
    board = leaderboard(write_runs(folds=10, replicates=5))
    row = board.comparisons.set_index(["a", "b"]).loc[("tiny", "color ridge")]
    assert row["verdict"] == "tiny beats color ridge"
    assert row["p"] == pytest.approx(2 / 2**10)


def test_a_leaky_protocol_is_named_on_every_table(write_runs: Write) -> None:
    protocol = ProtocolConfig.model_validate(
        {"leaky": True, "why": "to see", "panel": {"scope": "cohort"}, "deviations": ["none"]}
    )
    runs = [change(run, protocol=protocol.decisive(), protocol_hash=protocol.hash) for run in write_runs(folds=1)]
    board = leaderboard(runs)
    assert board.title == "planted, protocol stexpr (LEAKY)"
    assert board.card[0][0] == "Warning"
    assert "LEAKY, looks at test data: the genes are chosen on test spots too; to see" in board.markdown()
    assert ("Deviations", "none") in board.card


def test_unlike_versions_are_noted(write_runs: Write) -> None:
    runs = write_runs(folds=1)
    changed = [change(runs[0], versions={"stexpr": "0.1.0", "torch": "3.0"}), *runs[1:]]
    assert "The runs were made with unlike versions of torch: 3.0, unknown." in leaderboard(changed).notes


def test_a_baseline_without_any_image_that_leads_is_named(write_runs: Write) -> None:
    kind = {**MODELS["depth only"][1]}
    board = leaderboard(write_runs({**MODELS, "depth only": (0.85, kind)}))
    assert board.models["model"][0] == "depth only"
    assert " Without any image, depth only (0." in board.notes[0]
    assert "reads the measured depth of the test spots" in board.notes[0]
    assert board.genes["tiny"].is_monotonic_decreasing  # genes stay in the order of the best network


def test_baselines_without_an_image_that_do_not_lead_are_not_named(write_runs: Write) -> None:
    assert not any("Without any image" in note for note in leaderboard(write_runs(folds=2)).notes)
