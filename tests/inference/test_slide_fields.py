"""Slides and sections through a model that sees several fields of view: places are as far apart as the smallest is wide."""

import json
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import torch

import stexpr
from slides import MPP, slide_pixels, write_slide
from small_models import small_model, small_section
from stexpr.errors import DataError, DataWarning
from stexpr.inference.bags import embed_slide
from stexpr.inference.slide import predict_slide

FIELDS = (16, 64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_model(folder=tmp_path_factory.mktemp("model"), fields_px=FIELDS)


def patches_of(pixels: np.ndarray, centers: np.ndarray, side: int) -> torch.Tensor:
    corners = np.round(centers - side / 2).astype(int)
    return torch.from_numpy(np.stack([pixels[y : y + side, x : x + side] for x, y in corners])).permute(0, 3, 1, 2)


@pytest.mark.filterwarnings("ignore::stexpr.errors.DomainWarning")
def test_places_of_a_slide_are_one_spot_apart(model: Any, tmp_path: Path) -> None:
    pixels = slide_pixels(200, 300)
    slide = write_slide(tmp_path / "slide.tif", pixels)
    predict_slide(slide, model, tmp_path / "all.h5ad", mpp=MPP, features=True)
    adata = anndata.read_h5ad(tmp_path / "all.h5ad")
    places = adata.obsm["spatial"]
    columns = np.unique(places[:, 0])
    assert set(np.diff(columns)) == {16.0}
    assert places.min() >= 32  # every window lies wholly on the slide
    assert (places <= np.array([300, 200]) - 32).all()
    expected = model(patches_of(pixels, places, 64))
    np.testing.assert_allclose(adata.X, expected.expression, atol=1e-5)
    np.testing.assert_allclose(adata.obsm["X_stexpr"], expected.features, atol=1e-5)
    assert json.loads(adata.uns["stexpr"])["patch"]["fields_px"] == [16, 64]


def test_a_bag_has_a_row_for_each_spot(model: Any, tmp_path: Path) -> None:
    slide = write_slide(tmp_path / "slide.tif", slide_pixels(200, 300))
    bag = embed_slide(slide, model, tmp_path / "slide.h5")
    said = bag.provenance
    assert (said["patch"]["fields_px"], said["patch"]["px"], said["stride_um"]) == ([16, 64], 64, 16.0)
    assert (bag.patch_px, bag.features().shape) == (64, (bag.n, model.n_features))
    steps = np.diff(np.unique(bag.coords()[:, 0]))
    assert set(steps) == {16}


def test_a_spot_needs_all_its_fields_on_the_image(model: Any, tmp_path: Path) -> None:
    adata, image = small_section(tmp_path / "section")
    adata = adata[:3].copy()
    adata.obsm["spatial"] = np.array([[100.0, 100.0], [20.0, 100.0], [33.0, 33.0]])
    options = {"image": image, "mpp": 1.0}
    with pytest.warns(DataWarning, match=r"1 of 3 spots: the patch \(64 um wide"):
        stexpr.tl.embed(adata, model, **options)
    features = adata.obsm["X_stexpr"]
    assert np.isnan(np.asarray(features)).all(axis=1).tolist() == [False, True, False]
    stexpr.tl.embed(adata, model, edge="pad", **options)
    assert np.isfinite(np.asarray(adata.obsm["X_stexpr"])).all()
    with pytest.raises(DataError, match="1 of 3 spots"):
        stexpr.tl.embed(adata, model, edge="raise", **options)
    alone = stexpr.tl.embed(adata[[0]].copy(), model, copy=True, **options)
    assert json.loads(alone.uns["stexpr"])["tl"]["X_stexpr"]["fields_px"] == [16, 64]
