"""From predictions to scores: units, files and what a broken predictions file is told."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from planted_runs import make_predictions

from stexpr.errors import DataError, MetricError
from stexpr.evaluate.score import BOOTSTRAP_FILE, PER_GENE_FILE, read_per_gene, read_replicates, score


def test_each_section_is_scored_on_its_own_spots() -> None:
    predictions = make_predictions(patients=2, sections=2)
    shuffled = predictions[np.random.default_rng(0).permutation(len(predictions))].copy()
    scores = score(shuffled, n_replicates=10)
    assert len(scores.per_gene) == 4 * predictions.n_vars
    own = predictions[predictions.obs["section"] == "B2"]
    row = scores.per_gene.query("section == 'B2' and gene == 'GENE3'").iloc[0]
    assert row["patient"] == "B"
    assert row["n_spots"] == len(own)
    expected = scipy.stats.pearsonr(own.X[:, 3].astype(float), own.layers["measured"][:, 3].astype(float))[0]
    assert row["pearson"] == pytest.approx(expected, abs=1e-10)
    assert (scores.n.patients, scores.n.sections, scores.n.spots, scores.n.genes) == (2, 4, len(predictions), 12)
    assert scores.replicates.shape == (len(scores.per_gene), 10)


def test_pooling_rewards_differences_between_patients() -> None:
    predictions = make_predictions(patients=2)
    other = (predictions.obs["patient"] == "B").to_numpy()
    predictions.X[other] += 5
    predictions.layers["measured"][other] += 5
    within, pooled = score(predictions, n_replicates=10), score(predictions, "pooled", n_replicates=10)
    assert pooled.per_gene["section"].unique().tolist() == ["pooled"]
    assert pooled.per_gene["patient"].unique().tolist() == ["A + B"]
    assert len(pooled.per_gene) == predictions.n_vars
    assert pooled.summary["pearson"].value > within.summary["pearson"].value + 0.2
    expected = scipy.stats.pearsonr(predictions.X[:, 0].astype(float), predictions.layers["measured"][:, 0].astype(float))[0]
    assert pooled.per_gene["pearson"][0] == pytest.approx(expected, abs=1e-10)


def test_the_summary_has_an_interval_around_its_value() -> None:
    scores = score(make_predictions(patients=1))
    r = scores.summary["pearson"]
    assert r.low < r.value < r.high
    assert r.interval == "95 % spatial-block bootstrap, these sections only"
    assert scores.summary["rmse"].interval is None
    assert scores.replicates.shape[1] == 1000
    assert not scores.notes


def test_constants_are_nan_counted_and_listed() -> None:
    predictions = make_predictions()
    predictions.layers["measured"][:, 2] = 0
    predictions.X[:, 4] = 1.25
    scores = score(predictions, n_replicates=20)
    table = scores.per_gene.set_index("gene")
    assert np.isnan(table.loc[["GENE2", "GENE4"], ["pearson", "spearman"]]).all(axis=None)
    assert table["measured_constant"].sum() == table["predicted_constant"].sum() == 1
    assert scores.notes == (
        "measured values constant, left out: GENE2 (A1)",
        "predicted values constant: 1 of 11 gene x section, entering mean r as 0",
    )
    others = table["pearson"].drop(["GENE2", "GENE4"])
    assert scores.summary["pearson"].value == pytest.approx(others.sum() / 11)


def test_the_training_mean_has_null_r() -> None:
    scores = score(make_predictions(strength=0), n_replicates=10)
    assert scores.summary["pearson"].value is None
    assert scores.summary["pearson"].low is None
    assert scores.summary["r2"].value == 0
    assert "r is undefined" in scores.notes[0]


def test_files_read_back_equal(tmp_path: Path) -> None:
    scores = score(make_predictions(patients=2))
    scores.write(tmp_path)
    pd.testing.assert_frame_equal(read_per_gene(tmp_path), scores.per_gene, check_like=True)
    np.testing.assert_array_equal(read_replicates(tmp_path), scores.replicates)
    assert sorted(path.name for path in tmp_path.iterdir()) == [BOOTSTRAP_FILE, PER_GENE_FILE]


def test_replicates_of_250_genes_take_a_megabyte(tmp_path: Path) -> None:
    score(make_predictions(genes=250)).write(tmp_path)
    assert (tmp_path / BOOTSTRAP_FILE).stat().st_size < 1.5e6


def test_the_same_file_gives_the_same_scores(tmp_path: Path) -> None:
    import anndata

    predictions = make_predictions(patients=2)
    predictions.write_h5ad(tmp_path / "predictions.h5ad")
    again = score(anndata.read_h5ad(tmp_path / "predictions.h5ad"))  # obs columns come back categorical
    first = score(predictions)
    pd.testing.assert_frame_equal(again.per_gene, first.per_gene)
    assert again.summary == first.summary


def test_missing_or_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"per_gene\.parquet is missing though its run has a record; stexpr evaluate"):
        read_per_gene(tmp_path)
    score(make_predictions(), n_replicates=5).write(tmp_path)
    whole = (tmp_path / BOOTSTRAP_FILE).read_bytes()
    (tmp_path / BOOTSTRAP_FILE).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"bootstrap\.parquet is not readable"):
        read_replicates(tmp_path)
    read_per_gene(tmp_path).drop(columns="r2").to_parquet(tmp_path / PER_GENE_FILE)
    with pytest.raises(DataError, match="no column r2"):
        read_per_gene(tmp_path)


def test_what_is_refused() -> None:
    predictions = make_predictions(patients=2)
    broken = predictions.copy()
    del broken.obs["x_um"], broken.layers["measured"]
    with pytest.raises(DataError, match=r"lacks obs\['x_um'\], layers\['measured'\]"):
        score(broken)
    broken = predictions.copy()
    broken.obs["section"] = "A1"
    with pytest.raises(DataError, match="section 'A1' belongs to 2 patients"):
        score(broken)
    broken = predictions.copy()
    broken.obs["x_um"] = np.nan
    with pytest.raises(DataError, match="without a finite x_um"):
        score(broken)
    broken = predictions.copy()
    broken.X = np.ones(broken.shape, dtype=np.int64)
    with pytest.raises(DataError, match="not a dense array of floats, but int64"):
        score(broken)
    with pytest.raises(MetricError, match=r"1 spots have no spread.*while scoring section A1 of patient A"):
        score(predictions[:1].copy())
