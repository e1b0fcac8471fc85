"""Measured counts in an AnnData of any origin."""

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from stexpr.errors import DataError
from stexpr.evaluate.measured import measured_counts, unit_of
from stexpr.panel import ExpressionTransform

GENES = [f"G{i}" for i in range(6)]
COUNTS = np.random.default_rng(0).poisson(2.0, (9, 6)) * np.arange(9)[:, None]  # the first spot is empty


@given(st.lists(st.sampled_from([*GENES, "absent", "other"]), min_size=1, unique=True), st.booleans())
def test_genes_come_in_the_order_asked_for(wanted: list[str], dense: bool) -> None:
    adata = anndata.AnnData(COUNTS if dense else sp.csc_matrix(COUNTS), var=pd.DataFrame(index=GENES))
    if not set(wanted) & set(GENES):
        wanted = [*wanted, "G3"]
    measured = measured_counts(adata, wanted)
    assert measured.genes == tuple(gene for gene in wanted if gene in GENES)
    assert measured.absent == tuple(gene for gene in wanted if gene not in GENES)
    np.testing.assert_array_equal(measured.counts.toarray(), COUNTS[:, [GENES.index(gene) for gene in measured.genes]])
    np.testing.assert_array_equal(measured.library, COUNTS.sum(axis=1))
    expression = measured.expression(ExpressionTransform())
    assert np.isnan(expression[0]).all()
    own = measured.counts.toarray()[1:] / COUNTS.sum(axis=1)[1:, None]
    np.testing.assert_allclose(expression[1:], np.log1p(own * 1e4), rtol=1e-5)


def test_without_counts() -> None:
    with pytest.raises(DataError, match="neither X nor"):
        measured_counts(anndata.AnnData(shape=(9, 6), var=pd.DataFrame(index=GENES)), ["G1"])
    for wrong in (-1, 0.5, np.inf):
        values = COUNTS.astype(float)
        values[2, 3] = wrong
        with pytest.raises(DataError, match=f"X holds 1 values that are not counts, such as {wrong:g}"):
            measured_counts(anndata.AnnData(values, var=pd.DataFrame(index=GENES)), ["G1"])
    with pytest.raises(DataError, match=r"unit of obsm\['p'\] is unknown"):
        unit_of(anndata.AnnData(COUNTS), "p")
