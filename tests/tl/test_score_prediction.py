"""Scores in an AnnData: those of SciPy within each section, NaN where undefined, with everything left out named."""

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from scipy.stats import pearsonr

from small_models import GENES, small_model, small_section
from stexpr import tl
from stexpr.data.provenance import noted
from stexpr.errors import DataError, DataWarning, GeneError
from stexpr.evaluate.ceiling import noise_ceiling
from stexpr.evaluate.intervals import spatial_blocks
from stexpr.panel import ExpressionTransform


@pytest.fixture
def predicted(model: Any, section: tuple[Any, Path]) -> Any:
    adata, file = section
    tl.predict_expression(adata, model, image=file, mpp=1.0)
    return adata


def expression(adata: Any, gene: str) -> np.ndarray:
    counts = adata.X.toarray()
    return np.log1p(counts[:, list(adata.var_names).index(gene)] / np.maximum(counts.sum(axis=1), 1) * 1e4)


def test_r_and_ceiling_of_one_section(predicted: Any) -> None:
    adata = predicted
    tl.score_prediction(adata)
    for gene in GENES:
        r = pearsonr(adata.obsm["stexpr_expression"][gene], expression(adata, gene)).statistic
        assert adata.var.loc[gene, "stexpr_r"] == pytest.approx(r, abs=1e-5)
    counts = adata.X.toarray()
    places = [list(adata.var_names).index(gene) for gene in GENES]
    blocks = spatial_blocks(*adata.obsm["spatial"].T)
    ceiling = noise_ceiling(counts[:, places], counts.sum(axis=1).astype(float), ExpressionTransform(), blocks).value
    np.testing.assert_array_equal(adata.var["stexpr_ceiling"].to_numpy()[places], ceiling)
    others = ~adata.var_names.isin(GENES)
    assert adata.var.loc[others, ["stexpr_r", "stexpr_ceiling"]].isna().all(axis=None)
    said = noted(adata, "stexpr_score")
    assert (said["genes"], said["genes_not_measured"], said["spots_left_out"]) == (4, [], 0)
    assert said["median_r"] == pytest.approx(adata.var["stexpr_r"].median())
    assert "stexpr_expression" in said["prediction"]


def test_r_is_the_median_of_sections(model: Any, tmp_path: Path) -> None:
    parts = {}
    for seed, name in enumerate("abc"):
        adata, file = small_section(tmp_path / name, seed=seed)
        tl.predict_expression(adata, model, image=file, mpp=1.0)
        parts[name] = adata
    whole = anndata.concat(parts, label="slide", index_unique="-", uns_merge="first")
    depth = np.where(whole.obs["slide"] == "b", 10, 0)[:, None]
    whole.X = sp.csr_matrix(whole.X.toarray() + depth)
    tl.score_prediction(whole, section_key="slide")
    for gene in GENES:
        own = [whole[whole.obs["slide"] == name] for name in "abc"]
        r = [pearsonr(part.obsm["stexpr_expression"][gene], expression(part, gene)).statistic for part in own]
        assert whole.var.loc[gene, "stexpr_r"] == pytest.approx(np.median(r), abs=1e-5)
    assert noted(whole, "stexpr_score")["spots"] == {"a": 64, "b": 64, "c": 64}


def test_what_is_left_out_is_named(predicted: Any) -> None:
    adata = predicted
    adata.obsm["stexpr_expression"].iloc[:3] = np.nan
    counts = adata.X.toarray()
    counts[5] = 0
    counts[:, list(adata.var_names).index("G07")] = 0
    adata.X = sp.csr_matrix(counts)
    adata = adata[:, adata.var_names != "G00"].copy()
    with pytest.warns(DataWarning, match="1 of 4 genes of the model were not measured here: G00"):
        tl.score_prediction(adata)
    said = noted(adata, "stexpr_score")
    assert said["genes_not_measured"] == ["G00"]
    assert said["genes_undefined"] == ["G07"]
    assert said["spots_left_out"] == 4
    assert said["spots"] == {"all": 60}
    assert np.isnan(adata.var.loc["G07", "stexpr_r"])
    kept = np.setdiff1d(np.arange(64), [0, 1, 2, 5])
    r = pearsonr(adata.obsm["stexpr_expression"]["G03"].iloc[kept], expression(adata, "G03")[kept]).statistic
    assert adata.var.loc["G03", "stexpr_r"] == pytest.approx(r, abs=1e-5)


def test_genes_by_another_name(predicted: Any, tmp_path: Path) -> None:
    adata = predicted
    expected = tl.score_prediction(adata, copy=True).var["stexpr_r"]
    adata.var["symbol"] = adata.var_names
    adata.var_names = [f"ENSG{i:011d}.3" for i in range(adata.n_vars)]
    wanted = r"var_names holds none of the model's 4 genes, named like 'G03', 'G00'; var_names are like 'ENSG.*"
    with pytest.raises(GeneError, match=wanted + "gene_symbols='symbol' matches 4"):
        tl.score_prediction(adata)
    tl.score_prediction(adata, gene_symbols="symbol")
    np.testing.assert_array_equal(adata.var["stexpr_r"], expected)
    with pytest.raises(DataError, match="gene_symbols = 'symbl' is no column of var; did you mean 'symbol'"):
        tl.score_prediction(adata, gene_symbols="symbl")
    adata.var.loc[adata.var["symbol"] == "G11", "symbol"] = "G03"
    with pytest.raises(GeneError, match=r"1 genes stand more than once in var\['symbol'\]: G03"):
        tl.score_prediction(adata, gene_symbols="symbol")


def test_versions_of_ensembl_ids_do_not_matter(tmp_path: Path) -> None:
    ids = ("ENSMUSG00000000001", "ENSMUSG00000000002")
    adata, file = small_section(tmp_path / "s")
    adata.var_names = [f"{ids[0]}.4", ids[1], *adata.var_names[2:]]
    tl.predict_expression(adata, small_model(ids, folder=tmp_path / "m"), image=file, mpp=1.0)
    tl.score_prediction(adata)
    assert adata.var["stexpr_r"].notna().tolist() == [True, True, *[False] * 22]


def test_counts_come_from_where_they_are(predicted: Any) -> None:
    adata = predicted
    expected = tl.score_prediction(adata, copy=True).var["stexpr_r"]
    adata.layers["counts"] = adata.X.copy()
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    np.testing.assert_array_equal(tl.score_prediction(adata, copy=True).var["stexpr_r"], expected)
    del adata.layers["counts"]
    with pytest.raises(DataError, match=r"X holds .* values that are not counts.*layer="):
        tl.score_prediction(adata)
    tl.score_prediction(adata, layer="raw", key_added="mine")
    np.testing.assert_array_equal(adata.var["mine_r"], expected)
    with pytest.raises(DataError, match="no layer 'row'; did you mean 'raw'"):
        tl.score_prediction(adata, layer="row")


def test_what_is_refused(predicted: Any) -> None:
    adata = predicted
    with pytest.raises(DataError, match=r"obsm has no prediction 'stexpr_expresion'; did you mean 'stexpr_expression'"):
        tl.score_prediction(adata, key="stexpr_expresion")
    with pytest.raises(DataError, match="section_key = 'slide' is no column of obs"):
        tl.score_prediction(adata, section_key="slide")
    adata.obs["slide"] = pd.Series(["a"] + [None] * 63, index=adata.obs_names, dtype=object)
    with pytest.raises(DataError, match="is missing for 63 of 64 spots; each needs one"):
        tl.score_prediction(adata, section_key="slide")
    adata.obs["own"] = adata.obs_names
    with pytest.raises(DataError, match="no section has two spots with a prediction and a count; 64 of all spots have both"):
        tl.score_prediction(adata, section_key="own")
    adata.obsm["foreign"] = adata.obsm["stexpr_expression"]
    with pytest.raises(DataError, match=r"unit of obsm\['foreign'\] is unknown"):
        tl.score_prediction(adata, key="foreign")
    with pytest.raises(DataError, match="ndarray, not a table with the names of genes"):
        tl.score_prediction(adata, key="spatial")
