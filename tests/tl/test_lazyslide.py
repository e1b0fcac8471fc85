"""LazySlide runs our model on its own tiles, and gets what the model says of those pixels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from small_models import WINDOW_PX, small_model
from stexpr.errors import ModelError
from stexpr.tl.lazyslide import Encoder, ExpressionHead

pytestmark = [
    pytest.mark.filterwarnings("ignore:Call to deprecated class Scaler:DeprecationWarning"),  # spatialdata's own imports
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return small_model(folder=tmp_path_factory.mktemp("model"), mpp=0.5)


def run(slide: Path, model: Any) -> Any:
    """Tile a slide at the model's scale and predict, as the docstring of stexpr.tl.lazyslide says."""
    import lazyslide as zs
    from wsidata import open_wsi

    wsi = open_wsi(slide, store=None)
    encoder = Encoder(model)
    scale = {"stride_px": encoder.stride_px, "mpp": encoder.mpp}
    zs.pp.tile_tissues(wsi, encoder.tile_px, **scale, tissue_key=None, background_filter=False)
    zs.tl.feature_extraction(wsi, encoder, device="cpu", pbar=False)
    zs.tl.feature_prediction(wsi, ExpressionHead(model), device="cpu", pbar=False)
    return wsi


def check(wsi: Any, model: Any) -> None:
    tiles = torch.stack([torch.from_numpy(np.array(tile["image"])) for tile in wsi.ds.tile_images(tile_key="tiles")])
    expected = model(tiles.permute(0, 3, 1, 2))
    features, expression = wsi["stexpr_tiles"], wsi["stexpr_expression_tiles"]
    np.testing.assert_allclose(features.X, expected.features, atol=1e-5)
    np.testing.assert_allclose(expression.X, expected.expression, atol=1e-5)
    assert tuple(expression.var_names) == model.genes


def test_a_slide(model: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(60, 220, (4, 4, 3)), np.ones((64, 64, 1))).astype(np.uint8)
    slide = tmp_path / "slide.tif"
    # pixels of 0.5 um: 20,000 to the centimeter
    tifffile.imwrite(slide, pixels, tile=(64, 64), photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    wsi = run(slide, model)
    assert len(wsi["tiles"]) == (256 // WINDOW_PX) ** 2
    check(wsi, model)


def test_tiles_of_several_fields_overlap_by_all_but_the_smallest(tmp_path: Path) -> None:
    model = small_model(folder=tmp_path / "model", mpp=0.5, fields_px=(16, 64))
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    slide = tmp_path / "slide.tif"
    tifffile.imwrite(slide, pixels, tile=(64, 64), photometric="rgb", resolution=(20_000, 20_000), resolutionunit="CENTIMETER")
    wsi = run(slide, model)
    assert len(wsi["tiles"]) == ((256 - 64) // 16 + 1) ** 2
    check(wsi, model)


@pytest.mark.real
def test_a_scanned_slide(shared_data: Path, tmp_path: Path) -> None:
    coarse = small_model(folder=tmp_path / "model", mpp=2.0)
    wsi = run(shared_data / "wsi" / "cmu_small_region.svs", coarse)
    assert len(wsi["tiles"]) == (2220 * 0.499 // 64) * (2967 * 0.499 // 64)
    check(wsi, coarse)


def test_what_is_refused(model: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"a tile has 64 x 64 px; the model takes 32: cut them with zs\.pp\.tile_tissues\(wsi, 32"
    ):
        Encoder(model).get_transform()(np.zeros((64, 64, 3), dtype=np.uint8))
    with pytest.raises(ModelError, match=r"features have shape \(2, 3\); this model's are tiles x 192"):
        ExpressionHead(model).predict(np.zeros((2, 3)))
    stained = small_model(folder=tmp_path / "stained", stain="macenko")
    with pytest.raises(ModelError, match="trained on macenko normalized patches"):
        Encoder(stained)
