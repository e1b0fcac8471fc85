"""One section's table: what each column is, and what is undefined where."""

import json

import anndata
import numpy as np
import pytest
from planted_runs import make_predictions

from stexpr.config import ProtocolConfig, load_protocol
from stexpr.data.geometry import neighborhood_mean
from stexpr.data.neighbors import neighbor_weights
from stexpr.evaluate import diagnostics, spatial
from stexpr.evaluate.ceiling import noise_ceiling
from stexpr.evaluate.gene_scores import SEED, transform_of
from stexpr.evaluate.intervals import spatial_blocks
from stexpr.evaluate.score import score
from stexpr.evaluate.spatial_null import spatial_modes, spatial_null_p
from stexpr.panel import ExpressionTransform

MAPS = ["ssim", "moran_measured", "moran_predicted", "bivariate_moran", "spatial_p", "domain_ari", "domain_nmi"]
CEILINGS = ["ceiling", "ceiling_low", "ceiling_high", "ceiling_depth_blind"]


@pytest.fixture
def predictions() -> anndata.AnnData:
    return make_predictions()


def test_every_column_is_the_function_it_is_named_after(predictions: anndata.AnnData) -> None:
    table = score(predictions, n_replicates=2).per_gene
    x, y = (predictions.obs[axis].to_numpy(dtype=float) for axis in ("x_um", "y_um"))
    predicted, measured = np.asarray(predictions.X), predictions.layers["measured"]
    library = predictions.obs["library"].to_numpy(dtype=float)
    weights = neighbor_weights(x, y)
    ceiling = noise_ceiling(predictions.layers["counts"], library, ExpressionTransform(), spatial_blocks(x, y), seed=SEED)
    expected = {
        "slope": diagnostics.calibration_slope_per_gene(predicted, measured),
        "r_within_depth": diagnostics.depth_stratified_pearson(predicted, measured, library),
        "ssim": spatial.ssim_per_gene(predicted, measured, x, y),
        "moran_measured": spatial.moran_per_gene(measured, weights),
        "moran_predicted": spatial.moran_per_gene(predicted, weights),
        "bivariate_moran": spatial.bivariate_moran_per_gene(predicted, measured, weights),
        "spatial_p": spatial_null_p(predicted, measured, spatial_modes(x, y), seed=SEED).p,
        "ceiling": ceiling.value,
        "ceiling_depth_blind": ceiling.depth_blind,
        "predicted_mean": predicted.mean(axis=0),
        "measured_sd": measured.std(axis=0),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(table[name], values, rtol=1e-6, err_msg=name)
    assert table["domain_ari"].nunique() == 1


def test_without_counts_or_library_only_what_needs_them_is_undefined(predictions: anndata.AnnData) -> None:
    del predictions.layers["counts"]
    table = score(predictions, n_replicates=2).per_gene
    assert table[CEILINGS].isna().all(axis=None)
    assert table["r_within_depth"].notna().all()
    del predictions.obs["library"]
    assert score(predictions, n_replicates=2).per_gene["r_within_depth"].isna().all()


def test_pooled_sections_have_no_map() -> None:
    table = score(make_predictions(sections=2), "pooled", n_replicates=2).per_gene
    assert table[MAPS].isna().all(axis=None)
    assert table[[*CEILINGS, "pearson", "slope"]].notna().all(axis=None)


def test_spots_in_one_place_and_few_spots_are_scored_without_what_they_lack() -> None:
    few = make_predictions(spots=3)
    assert score(few, n_replicates=2).per_gene["r_within_depth"].isna().all()
    few.obs["x_um"] = few.obs["y_um"] = 0.0
    table = score(few, n_replicates=2).per_gene
    assert table[MAPS].isna().all(axis=None)
    assert table["pearson"].notna().all()


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"protocol": load_protocol("triplex").decisive(), "n_genes": 9},
        {"protocol": ProtocolConfig.model_validate({"expression": {"library": "panel"}}).decisive(), "n_genes": 9},
        {"protocol": load_protocol("stnet").decisive()},
    ],
)
def test_units_without_a_ceiling(predictions: anndata.AnnData, said: dict[str, object]) -> None:
    predictions.uns["stexpr"] = json.dumps(said)
    assert transform_of(predictions) is None


def test_the_unit_is_that_of_the_protocol(predictions: anndata.AnnData) -> None:
    assert transform_of(predictions) == ExpressionTransform("library_log1p", 1e4, 1000)
    assert neighborhood_mean(predictions.obs.assign(section="A1")).shape == (90, 90)
