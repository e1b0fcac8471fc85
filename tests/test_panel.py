"""What is fitted on training spots: gene panels, expression units and scaling."""

import json
from typing import Any

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.preprocessing import StandardScaler

from stexpr.errors import ConfigError, GeneError
from stexpr.panel import ExpressionScaler, ExpressionTransform, GenePanel, fit_panel

COUNTS = hnp.arrays(np.int32, st.tuples(st.integers(2, 12), st.integers(3, 10)), elements=st.integers(0, 4))


def named(counts: np.ndarray) -> tuple[sp.csr_matrix, list[str]]:
    return sp.csr_matrix(counts), [f"g{i}" for i in range(counts.shape[1])]


@pytest.fixture
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.poisson(np.linspace(0.05, 5, 20), size=(60, 20)).astype(np.int32)


# --- panels ----------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(COUNTS, st.floats(0, 1), st.integers(1, 3))
def test_a_panel_splits_the_genes_that_pass_the_filter(counts: np.ndarray, least: float, n_main: int) -> None:
    matrix, genes = named(counts)
    detection = dict(zip(genes, (counts > 0).mean(axis=0), strict=True))
    passing = [gene for gene in genes if detection[gene] >= least]
    if len(passing) < n_main:
        with pytest.raises(GeneError, match=f"asks for {n_main} main genes, but only {len(passing)} of {len(genes)}"):
            fit_panel(matrix, genes, n_main=n_main, min_detection=least)
        return
    panel = fit_panel(matrix, genes, n_main=n_main, min_detection=least)
    assert len(panel.main) == n_main
    assert sorted([*panel.main, *panel.auxiliary]) == sorted(passing)
    assert list(panel.auxiliary) == [gene for gene in genes if gene in panel.auxiliary]  # the order of the file
    means = dict(zip(genes, counts.mean(axis=0), strict=True))
    assert all(means[a] >= means[b] for a, b in zip(panel.main, panel.main[1:], strict=False))
    assert all(means[gene] <= means[panel.main[-1]] for gene in panel.auxiliary)
    assert panel.detection == {gene: pytest.approx(detection[gene], abs=1e-6) for gene in panel.main}


@settings(max_examples=50, deadline=None)
@given(COUNTS, st.randoms(use_true_random=False))
def test_the_order_of_the_file_does_not_choose_genes(counts: np.ndarray, random: Any) -> None:
    matrix, genes = named(counts)
    order = list(range(len(genes)))
    random.shuffle(order)
    first = fit_panel(matrix, genes, n_main=2, min_detection=0.0)
    second = fit_panel(matrix[:, order], [genes[i] for i in order], n_main=2, min_detection=0.0)
    assert first.main == second.main
    assert set(first.auxiliary) == set(second.auxiliary)


def test_included_genes_take_places_whatever_their_rank(counts: np.ndarray) -> None:
    matrix, genes = named(counts)
    plain, panel = (fit_panel(matrix, genes, n_main=5, include=include) for include in ((), ("g0", "g19")))
    assert panel.main == ("g0", "g19", *[gene for gene in plain.main if gene != "g19"][:3])
    assert panel.included == ("g0", "g19")
    assert panel.detection["g0"] == pytest.approx((counts[:, 0] > 0).mean(), abs=1e-6)


def test_a_list_is_taken_as_it_stands(counts: np.ndarray) -> None:
    matrix, genes = named(counts)
    panel = fit_panel(matrix, genes, rule="list", listed=["g3", "g0", "g7"], include=["g7"], n_main=99)
    assert panel.main == ("g7", "g3", "g0")
    assert not set(panel.auxiliary) & set(panel.main)
    assert panel.rule == "list"


def test_the_scope_is_recorded(counts: np.ndarray) -> None:
    assert fit_panel(*named(counts), n_main=3, scope="cohort").scope == "cohort"


def test_highly_variable_genes_vary_more_than_their_mean_tells() -> None:
    rng = np.random.default_rng(1)
    counts = rng.poisson(np.geomspace(1, 20, 400), size=(200, 400))
    wild = [60, 200, 330]
    counts[:, wild] = rng.poisson(counts.mean(axis=0)[wild] * rng.gamma(0.5, 2, size=(200, 3)))
    matrix, genes = named(counts.astype(np.int32))
    panel = fit_panel(matrix, genes, rule="highly_variable", n_main=3)
    assert set(panel.main) == {genes[i] for i in wild}
    assert panel.rule == "highly_variable"


@pytest.mark.parametrize("where", ["include", "listed"])
def test_an_absent_gene_is_refused_with_the_nearest(counts: np.ndarray, where: str) -> None:
    matrix, _ = named(counts)
    genes = ["MKI67", "ERBB2", *(f"g{i}" for i in range(18))]
    choices: dict[str, Any] = {where: ["MKI68"]}
    with pytest.raises(GeneError, match=r"gene 'MKI68' of the panel is not in the cohort \(20 genes\); did you mean 'MKI67'\?"):
        fit_panel(matrix, genes, rule="list" if where == "listed" else "top_mean", n_main=2, **choices)


def test_panels_survive_json_and_are_told_apart_by_their_genes(counts: np.ndarray) -> None:
    matrix, genes = named(counts)
    panel = fit_panel(matrix, genes, n_main=4, include=["g2"])
    again = GenePanel.from_dict(json.loads(json.dumps(panel.to_dict())))
    assert again == panel
    assert again.hash == panel.hash
    assert fit_panel(matrix, genes, n_main=5).hash != panel.hash
    # The rule may differ where the genes do not: equal hashes mean the same prediction.
    listed = fit_panel(matrix, genes, rule="list", listed=panel.main)
    assert listed.main == panel.main
    assert (listed.hash == panel.hash) == (listed.auxiliary == panel.auxiliary)
    swapped = GenePanel.from_dict({**panel.to_dict(), "main": panel.main[::-1]})
    assert swapped.hash != panel.hash


# --- expression ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["library_log1p", "log1p", "stnet"])
def test_expression_is_the_published_formula(kind: Any, counts: np.ndarray) -> None:
    values = counts.astype(np.float64)
    library = values.sum(axis=1) + 5
    expected = {
        "library_log1p": np.log(1 + 1e4 * values / library[:, None]),
        "log1p": np.log(1 + values),
        "stnet": np.log((1 + values) / (20 + library[:, None])),
    }[kind]
    transform = ExpressionTransform(kind, n_genes=20)
    np.testing.assert_allclose(transform(values, library), expected)
    tensors = transform(torch.from_numpy(values), torch.from_numpy(library))
    np.testing.assert_allclose(tensors.numpy(), expected)


@settings(max_examples=40, deadline=None)
@given(COUNTS, st.integers(2, 9))
def test_library_size_does_not_change_expression(counts: np.ndarray, depth: int) -> None:
    values = counts.astype(np.float64)
    library = values.sum(axis=1) + 1
    transform = ExpressionTransform()
    np.testing.assert_allclose(transform(values, library), transform(values * depth, library * depth))


def test_the_stnet_units_need_the_number_of_genes() -> None:
    with pytest.raises(ConfigError, match="needs n_genes"):
        ExpressionTransform("stnet")


# --- scaling ---------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(1, 5)), elements=st.floats(-50, 50, width=32)))
def test_scaling_is_that_of_scikit_learn(expression: np.ndarray) -> None:
    scaler = ExpressionScaler.fit(expression)
    oracle = StandardScaler().fit(expression)
    np.testing.assert_allclose(scaler.mean, oracle.mean_, rtol=1e-5, atol=1e-5)
    constant = np.ptp(expression, axis=0) <= 1e-7 * np.maximum(1, np.abs(oracle.mean_))
    np.testing.assert_array_equal(scaler.sd[constant], 1)
    varying = np.sqrt(oracle.var_) > 1e-5 * np.maximum(1, np.abs(oracle.mean_))
    np.testing.assert_allclose(scaler.sd[varying], np.sqrt(oracle.var_[varying]), rtol=1e-5)


def test_a_constant_gene_gets_target_zero() -> None:
    expression = np.column_stack([np.full(7, 3.3), np.arange(7.0)]).astype(np.float32)
    scaler = ExpressionScaler.fit(expression)
    assert scaler.sd[0] == 1
    np.testing.assert_allclose((expression - scaler.mean)[:, 0], 0, atol=1e-6)


@pytest.mark.parametrize("bad", [np.zeros((0, 3)), np.array([[1.0, np.nan]]), np.array([[np.inf, 1.0]])])
def test_what_cannot_be_scaled_is_refused(bad: np.ndarray) -> None:
    with pytest.raises(GeneError, match="cannot scale expression of shape"):
        ExpressionScaler.fit(bad)
