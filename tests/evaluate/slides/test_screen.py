"""A screen finds the planted gene and no other, and names what it did not test."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control
from survivors import held_out

from stexpr.errors import DataError
from stexpr.evaluate.slides.binary import auroc
from stexpr.evaluate.slides.held_out import score_folds
from stexpr.evaluate.slides.screen import screen_genes

GENES = ["PLANTED", "NOISE1", "NOISE2", "RARE"]


def planted() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    mutated = (rng.random((90, 4)) < 0.3).astype(float)
    mutated[:, 3] = np.arange(90) < 4
    predicted = rng.normal(size=(90, 4))
    predicted[:, 0] += 2 * mutated[:, 0]
    mutated[:5, 0] = np.nan
    return predicted, mutated


def test_the_planted_gene_alone_is_found() -> None:
    predicted, mutated = planted()
    of = held_out(90)
    table = screen_genes(predicted, mutated, GENES, of, permutations=199, replicates=100)
    assert table["significant"].tolist() == [True, False, False, False]
    tested = table["p"].to_numpy()[:3]
    np.testing.assert_allclose(table["q"][:3], false_discovery_control(tested))
    assert table.loc["PLANTED", "n_patients"] == 85
    row, known = table.loc["NOISE1"], score_folds(auroc, of, predicted[:, 1], mutated[:, 1] == 1)
    assert (row["auroc"], row["auroc_pooled"], row["n_folds"]) == (known.mean, known.pooled, 3)
    assert row["low"] < row["auroc"] < row["high"]


def test_a_rare_gene_is_named_and_no_hypothesis() -> None:
    predicted, mutated = planted()
    row = screen_genes(predicted, mutated, GENES, held_out(90), permutations=19, replicates=20).loc["RARE"]
    assert row["reason"] == "not tested: 4 positive of 90 patients, needs 5 of each"
    assert row[["auroc", "low", "high", "auprc", "auroc_pooled", "p", "q"]].isna().all()
    assert not row["significant"]


def test_a_fold_without_a_positive_is_in_the_reason() -> None:
    mutated = ((np.arange(30) % 3 == 0) & (np.arange(30) < 18)).astype(float)[:, None]
    predicted = np.arange(30.0)[:, None]
    row = screen_genes(predicted, mutated, ["TP53"], held_out(30), permutations=19, replicates=20).loc["TP53"]
    assert row["n_folds"] == 1
    assert "fold fold 1: 0 positive and 10 negative" in row["reason"]


def test_wrong_tables_are_refused() -> None:
    predicted, mutated = planted()
    with pytest.raises(DataError, match=r"patients x genes, \(90, 3\)"):
        screen_genes(predicted, mutated, GENES[:3], held_out(90))
    with pytest.raises(DataError, match="no gene may stand twice"):
        screen_genes(predicted, mutated, ["A", "A", "B", "C"], held_out(90))
    with pytest.raises(DataError, match="1, 0 and NaN"):
        screen_genes(predicted, mutated + 1, GENES, held_out(90))
