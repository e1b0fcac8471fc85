"""What scanpy and squidpy do next runs on the result."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stexpr import tl


@pytest.fixture
def done(model: Any, section: tuple[Any, Path]) -> Any:
    adata, file = section
    tl.predict(adata, model, image=file, mpp=1.0)
    tl.spatial_domains(adata, n_neighbors=8)
    return adata


@pytest.mark.filterwarnings("ignore:The set_bad function will be deprecated:PendingDeprecationWarning")  # scanpy calls it
def test_scanpy_goes_on_from_the_features(done: Any) -> None:
    import matplotlib
    import scanpy as sc

    matplotlib.use("Agg")
    sc.pp.neighbors(done, use_rep="X_stexpr", n_neighbors=8, random_state=0)
    sc.tl.leiden(done, flavor="igraph", n_iterations=2, directed=False)
    assert done.obs["leiden"].nunique() > 1
    figure = sc.pl.embedding(done, basis="spatial", color="stexpr_domains", show=False, return_fig=True)
    assert len(figure.axes[0].collections[0].get_offsets()) == done.n_obs
    matplotlib.pyplot.close(figure)


@pytest.mark.filterwarnings("ignore:.*is not a valid key!:SyntaxWarning")  # squidpy's own docstrings, at its import
def test_squidpy_goes_on_from_the_prediction(done: Any, model: Any, section: tuple[Any, Path]) -> None:
    import squidpy as sq

    from stexpr.data.neighbors import neighbor_weights
    from stexpr.evaluate.spatial import moran_per_gene

    made = tl.predict_expression(done, model, image=section[1], mpp=1.0, as_anndata=True)
    sq.gr.spatial_neighbors_grid(made, n_neighs=4)
    sq.gr.spatial_autocorr(made, mode="moran", show_progress_bar=False, n_jobs=1)
    x, y = made.obsm["spatial"].T.astype(float)
    ours = moran_per_gene(made.X.astype(float), neighbor_weights(x, y))
    np.testing.assert_allclose(made.uns["moranI"].loc[made.var_names, "I"], ours, atol=1e-5)
    sq.gr.spatial_neighbors_knn(made, n_neighs=4, key_added="knn")
    assert made.obsp["knn_connectivities"].nnz == 4 * made.n_obs
