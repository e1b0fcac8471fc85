"""Domains in an AnnData: planted ones are found, a spot without features has none, and the call is repeatable."""

from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from sklearn.metrics import adjusted_rand_score

from stexpr import tl
from stexpr.data.provenance import noted
from stexpr.errors import DataError, MetricError

TRUTH = np.repeat([0, 1, 2], [60, 40, 50])


@pytest.fixture
def adata() -> Any:
    centers = np.random.default_rng(7).normal(size=(3, 12)) * 3
    features = centers[TRUTH] + np.random.default_rng(0).normal(size=(150, 12))
    return anndata.AnnData(
        sp.csr_matrix(features), obs=pd.DataFrame(index=[f"s{i}" for i in range(150)]), obsm={"X_stexpr": features}
    )


def test_planted_domains_are_found(adata: Any) -> None:
    assert tl.spatial_domains(adata, n_domains=3) is None
    found = adata.obs["stexpr_domains"]
    assert adjusted_rand_score(TRUTH, found) == 1
    assert found.cat.categories.tolist() == ["0", "1", "2"]
    assert found.value_counts()[["0", "1", "2"]].tolist() == [60, 50, 40]
    said = noted(adata, "stexpr_domains")
    assert said["n_domains"] == 3
    again = tl.spatial_domains(adata, resolution=said["resolution"], copy=True)
    pd.testing.assert_series_equal(again.obs["stexpr_domains"], found)


def test_every_kind_of_table_is_taken(adata: Any) -> None:
    tl.spatial_domains(adata)
    adata.obsm["table"] = pd.DataFrame(adata.obsm["X_stexpr"], index=adata.obs_names, columns=[f"g{i}" for i in range(12)])
    for rep in ("X", "table"):
        tl.spatial_domains(adata, use_rep=rep, key_added=rep)
        pd.testing.assert_series_equal(adata.obs[rep], adata.obs["stexpr_domains"], check_names=False)


def test_a_spot_without_features_has_no_domain(adata: Any) -> None:
    adata.obsm["X_stexpr"][[3, 149]] = np.nan
    tl.spatial_domains(adata, n_domains=3)
    missing = adata.obs["stexpr_domains"].isna().to_numpy()
    assert np.flatnonzero(missing).tolist() == [3, 149]
    assert adjusted_rand_score(TRUTH[~missing], adata.obs["stexpr_domains"][~missing]) == 1
    assert noted(adata, "stexpr_domains")["left_out"] == {"not finite": 2}


def test_what_is_refused(adata: Any) -> None:
    with pytest.raises(DataError, match="obsm has no 'X_stexp'; did you mean 'X_stexpr'"):
        tl.spatial_domains(adata, use_rep="X_stexp")
    with pytest.raises(MetricError, match="150 spots; it must be at least 1 and below the spots"):
        tl.spatial_domains(adata, n_neighbors=150)
    adata.obsm["names"] = pd.DataFrame({"a": ["x"] * 150}, index=adata.obs_names)
    with pytest.raises(DataError, match=r"names holds object of shape \(150, 1\)"):
        tl.spatial_domains(adata, use_rep="names")
    del adata.obsm["X_stexpr"]
    with pytest.raises(DataError, match=r"no 'X_stexpr' \(stexpr.tl.embed makes it\)"):
        tl.spatial_domains(adata)
