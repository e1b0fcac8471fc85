"""Figures for papers: the right gene, model and section, one file each, and clear words where there is nothing to draw."""

import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent / "evaluate"))
from page_boards import make_board
from planted_runs import make_predictions

from small_models import small_model, small_section
from stexpr import pl
from stexpr.errors import DataError, GeneError, MetricError


def test_the_leaderboard_is_saved_as_it_is_drawn(tmp_path: Path) -> None:
    board = make_board()
    figure = pl.leaderboard(board, save=tmp_path / "new" / "board.pdf")
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == board.models["model"].tolist()
    assert (tmp_path / "new" / "board.pdf").read_bytes().startswith(b"%PDF")
    first = (tmp_path / "new" / "board.pdf").read_bytes()
    pl.leaderboard(board, save=str(tmp_path / "new" / "board.pdf"))
    assert (tmp_path / "new" / "board.pdf").read_bytes() == first
    pl.leaderboard(board, save=tmp_path / "board.PNG")
    assert (tmp_path / "board.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(DataError, match=r"board\.jpg.*must end in \.pdf, \.png, \.svg"):
        pl.leaderboard(board, save=tmp_path / "board.jpg")


def test_a_map_is_of_the_gene_and_section_asked_for(tmp_path: Path) -> None:
    predictions = make_predictions(2)
    figure = pl.gene_map(predictions, "GENE3", section="B1")
    inside = (predictions.obs["section"] == "B1").to_numpy()
    np.testing.assert_array_equal(figure.axes[0].collections[0].get_array(), predictions.layers["measured"][inside, 3])
    np.testing.assert_array_equal(figure.axes[1].collections[0].get_array(), predictions.X[inside, 3])
    assert figure.get_suptitle().startswith("GENE3 in B1, r = ")
    predictions[inside].copy().write_h5ad(tmp_path / "predictions.h5ad")
    again = pl.gene_map(tmp_path / "predictions.h5ad", "GENE3", save=tmp_path / "map.svg")
    np.testing.assert_array_equal(again.axes[1].collections[0].get_array(), predictions.X[inside, 3])
    assert "GENE3 in B1" in (tmp_path / "map.svg").read_text()


def test_a_map_of_nothing_is_refused(tmp_path: Path) -> None:
    predictions: anndata.AnnData = make_predictions(2)
    with pytest.raises(GeneError, match="no gene 'GENE33'; did you mean 'GENE3'"):
        pl.gene_map(predictions, "GENE33", section="A1")
    with pytest.raises(DataError, match="hold 2 sections; choose one with section=: A1, B1"):
        pl.gene_map(predictions, "GENE3")
    with pytest.raises(DataError, match="no section 'C1'"):
        pl.gene_map(predictions, "GENE3", section="C1")
    with pytest.raises(DataError, match=r"cannot read .*absent\.h5ad"):
        pl.gene_map(tmp_path / "absent.h5ad", "GENE3")


def test_r_against_the_ceiling_takes_the_best_network() -> None:
    board = make_board()
    for model, chosen in ((None, "tiny + aux"), ("color ridge", "color ridge")):
        figure = pl.r_vs_ceiling(board, model)
        (dots,) = [line for line in figure.axes[0].lines if line.get_label() == "gene"]
        rows = ~board.genes["unpredictable"].to_numpy()
        np.testing.assert_allclose(dots.get_ydata(), board.genes.loc[rows, chosen])
        np.testing.assert_allclose(dots.get_xdata(), board.genes.loc[rows, "ceiling"])
    with pytest.raises(MetricError, match="holds no noise ceiling"):
        pl.r_vs_ceiling(make_board(extras=False))
    with pytest.raises(DataError, match="no model 'tinny'; did you mean 'tiny'"):
        pl.r_vs_ceiling(board, "tinny")


def test_gene_ranks_are_of_the_model_asked_for() -> None:
    board = make_board()
    figure = pl.gene_ranks(board, "color ridge", n=5)
    best = board.genes.sort_values("color ridge", ascending=False).head(5)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == best["gene"].tolist()
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), best["color ridge"])
    assert figure.axes[0].get_title() == "color ridge: the best 5 of 30 genes"
    with pytest.raises(MetricError, match="r of training mean is undefined for every gene"):
        pl.gene_ranks(board, "training mean")


def test_importing_it_loads_no_matplotlib() -> None:
    code = "import sys, stexpr.pl; print(sorted({'matplotlib', 'plotly', 'torch', 'scanpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_a_map_after_predict_expression(tmp_path: Path) -> None:
    from stexpr import tl

    adata, file = small_section(tmp_path / "section")
    adata = adata[:, adata.var_names != "G07"].copy()
    tl.predict(adata, small_model(folder=tmp_path / "model"), image=file, mpp=1.0)
    figure = pl.gene_map(adata, "G03", image=file)
    counts = adata.X.toarray()
    measured = np.log1p(counts[:, 3] / counts.sum(axis=1) * 1e4)
    np.testing.assert_allclose(figure.axes[0].collections[0].get_array(), measured, rtol=1e-5)
    np.testing.assert_allclose(figure.axes[1].collections[0].get_array(), adata.obsm["stexpr_expression"]["G03"], rtol=1e-5)
    assert tuple(figure.axes[0].images[0].get_extent()) == (0, 320, 320, 0)
    alone = pl.gene_map(adata, "G07")
    assert alone.axes[0].get_title() == "predicted"
    assert not alone.axes[0].images
    made = tl.predict_expression(adata, tmp_path / "model", image=file, mpp=1.0, as_anndata=True)
    np.testing.assert_array_equal(pl.gene_map(made, "G07").axes[0].collections[0].get_array(), made[:, "G07"].X.ravel())
    with pytest.raises(GeneError, match="no gene 'G08'"):
        pl.gene_map(adata, "G08")
    adata.X = np.log1p(counts)
    with pytest.raises(DataError, match="not counts"):
        pl.gene_map(adata, "G03")


def test_embeddings_domains_and_numbers_over_the_tissue(tmp_path: Path) -> None:
    from stexpr import tl

    adata, file = small_section(tmp_path / "section")
    tl.embed(adata, small_model(folder=tmp_path / "model"), image=file, mpp=1.0)
    tl.spatial_domains(adata, n_neighbors=8)
    adata.obs["novelty"] = np.arange(64.0)
    adata.obs["slide"] = np.repeat(["left", "right"], 32)
    colors = pl.embedding_map(adata, image=file, save=tmp_path / "map.png")
    assert "principal components: red " in colors.axes[0].get_xlabel()
    domains = pl.embedding_map(adata, "stexpr_domains", section="right", section_key="slide")
    assert domains.axes[0].get_title() == "stexpr_domains in right"
    assert len(domains.axes[0].collections[0].get_offsets()) == 32
    assert [text.get_text()[0] for text in domains.legends[0].get_texts()] == list(adata.obs["stexpr_domains"].cat.categories)
    numbers = pl.embedding_map(adata, "novelty", section="right", section_key="slide")
    np.testing.assert_array_equal(numbers.axes[0].collections[0].get_array(), np.arange(32.0, 64.0))
    with pytest.raises(DataError, match="neither obsm nor obs has 'novelti'; did you mean 'novelty'"):
        pl.embedding_map(adata, "novelti")
    with pytest.raises(DataError, match="no section 'a': obs has no column 'section'"):
        pl.embedding_map(adata, section="a")
    with pytest.raises(DataError, match="there is no image"):
        pl.embedding_map(adata, image=True)
    del adata.obsm["spatial"]
    with pytest.raises(DataError, match=r"no obsm\[.spatial.\]"):
        pl.embedding_map(adata)
