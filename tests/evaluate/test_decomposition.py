"""Pooled correlations from moments, against the correlations themselves."""

import numpy as np
import pandas as pd
import pytest
from planted_runs import make_predictions
from scipy.stats import pearsonr

from stexpr.evaluate.decomposition import Decomposition, decompose, mean_decomposition
from stexpr.evaluate.score import score


def shifted(patients: int, sections: int = 2) -> object:
    predictions = make_predictions(patients, sections, strength=0.5, genes=4)
    patient = pd.factorize(predictions.obs["patient"])[0]
    rng = np.random.default_rng(3)
    predictions.X = predictions.X + rng.normal(0, 1, (patients, 4)).astype(np.float32)[patient]
    predictions.layers["measured"] = (
        predictions.layers["measured"] + rng.normal(0, 1, (patients, 4)).astype(np.float32)[patient]
    )
    return predictions


def test_all_three_parts_are_the_correlations_themselves() -> None:
    predictions = shifted(4)
    found = decompose(score(predictions, n_replicates=2).per_gene)
    x, y = (pd.DataFrame(np.asarray(values, dtype=float)) for values in (predictions.X, predictions.layers["measured"]))
    patient = predictions.obs["patient"].to_numpy()
    x_mean, y_mean = x.groupby(patient).transform("mean"), y.groupby(patient).transform("mean")
    for name, (one, other) in {"pooled": (x, y), "within": (x - x_mean, y - y_mean), "between": (x_mean, y_mean)}.items():
        expected = np.mean([pearsonr(one[g], other[g]).statistic for g in one])
        assert getattr(found, name) == pytest.approx(expected, abs=1e-5), name


def test_two_patients_have_no_correlation_between_them() -> None:
    found = decompose(score(shifted(2), n_replicates=2).per_gene)
    assert np.isnan(found.between)
    assert np.isfinite(found.pooled)


def test_genes_of_some_patients_only_are_left_out() -> None:
    table = score(shifted(3), n_replicates=2).per_gene
    alone = decompose(table[table["gene"] != "GENE1"])
    some = decompose(table[(table["gene"] != "GENE1") | (table["patient"] != "C")])
    assert some == alone
    assert np.isnan(decompose(table[(table["patient"] == "A") ^ (table["gene"] != "GENE1")].query("gene == 'none'")).pooled)


def test_tables_without_moments_have_none() -> None:
    table = score(shifted(3), n_replicates=2).per_gene
    assert np.isnan(decompose(table.drop(columns="predicted_mean")).pooled)
    assert np.isnan(mean_decomposition([Decomposition(0.5, 0.5, np.nan), Decomposition(0.3, 0.1, np.nan)]).between)
    assert mean_decomposition([Decomposition(0.5, 0.5, 0.0), Decomposition(0.3, 0.1, 0.0)]).pooled == pytest.approx(0.4)
