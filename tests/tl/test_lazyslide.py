"""LazySlide runs our model on its own tiles, and gets what the model says of those pixels."""

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch

from slides import slide_pixels, write_slide
from small_models import WINDOW_PX, small_model
from stexpr.data.images import open_image
from stexpr.data.stain import STANDARD
from stexpr.data.windows import Windows
from stexpr.errors import DataError, ModelError, ScaleError
from stexpr.inference.bags import EmbedSettings, embed_slide
from stexpr.models.export import Release
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
    encoder = Encoder(model, wsi=wsi)
    scale = {"stride_px": encoder.stride_px, "mpp": encoder.mpp}
    zs.pp.tile_tissues(wsi, encoder.tile_px, **scale, tissue_key=None, background_filter=False)
    zs.tl.feature_extraction(wsi, encoder, device="cpu", pbar=False)
    zs.tl.feature_prediction(wsi, ExpressionHead(model), device="cpu", pbar=False)
    return wsi


def check(wsi: Any, model: Any) -> None:
    transform = Encoder(model, wsi=wsi).get_transform()
    expected = model(torch.stack([transform(tile["image"]) for tile in wsi.ds.tile_images(tile_key="tiles")]))
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


@pytest.fixture(scope="module")
def standardized(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model that sees standardized colors, as that of the best study."""
    model = small_model(folder=tmp_path_factory.mktemp("colored"), mpp=0.5, stain="standardized")
    return replace(model, release=Release(stain_reference=STANDARD.describe()))


def write_levels(path: Path, pixels: np.ndarray, mpp: float) -> Path:
    """Write a pyramid of two levels that openslide sees, the second of every second pixel."""
    options: dict[str, Any] = {"photometric": "rgb", "tile": (64, 64), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, resolution=(1e4 / mpp, 1e4 / mpp), **options)
        file.write(np.ascontiguousarray(pixels[::2, ::2]), resolution=(5e3 / mpp, 5e3 / mpp), subfiletype=1, **options)
    return path


@pytest.mark.parametrize("kind", ["standardized", "none"])
@pytest.mark.parametrize(("mpp", "write"), [(0.5, write_slide), (0.25, write_slide), (0.25, write_levels)])
def test_tiles_become_the_patches_of_embed_slide(kind: str, mpp: float, write: Any, request: Any, tmp_path: Path) -> None:
    model = request.getfixturevalue("standardized" if kind == "standardized" else "model")
    slide = write(tmp_path / "slide.tif", slide_pixels(int(160 / mpp), int(240 / mpp)), mpp=mpp)
    wsi = run(slide, model)
    bag = embed_slide(slide, model, tmp_path / "bag.h5", settings=EmbedSettings(expression=True, patches=True))
    row_of = {
        tuple(corner): row for row, corner in enumerate(wsi["tiles"].bounds[["minx", "miny"]].astype(int).to_numpy().tolist())
    }
    rows = [row_of[tuple(corner)] for corner in bag.coords().astype(int).tolist()]
    assert bag.n > 20
    # bit for bit the pixels; of the features a bag keeps half precision
    transform = Encoder(model, wsi=wsi).get_transform()
    images = wsi.ds.tile_images(tile_key="tiles")
    seen = np.stack([transform(images[row]["image"]).permute(1, 2, 0) for row in rows])
    np.testing.assert_array_equal(seen, bag.patches(np.arange(bag.n)))
    np.testing.assert_allclose(wsi["stexpr_tiles"].X[rows], bag.features(), atol=1e-3, rtol=1e-3)
    np.testing.assert_allclose(wsi["stexpr_expression_tiles"].X[rows], bag.features("expression"), atol=1e-3, rtol=1e-3)
    again = pickle.loads(pickle.dumps(transform))  # so it reaches loader processes that are spawned
    assert torch.equal(again(images[0]["image"]), transform(images[0]["image"]))


def test_standardized_tiles_have_the_standard_colors(standardized: Any, model: Any, tmp_path: Path) -> None:
    from wsidata import open_wsi

    pixels = slide_pixels(320, 480)
    wsi = open_wsi(write_slide(tmp_path / "slide.tif", pixels, mpp=0.5), store=None)
    tissue = pixels[144:176, 224:256]
    plain, colored = (Encoder(one, wsi=wsi).get_transform()(tissue).float() for one in (model, standardized))
    np.testing.assert_array_equal(plain.permute(1, 2, 0), tissue)
    middle = torch.from_numpy(STANDARD.mean).float()
    assert (colored.mean((1, 2)) - middle).abs().max() < 25 < (plain.mean((1, 2)) - middle).abs().max()


def test_a_coarse_model_sees_much_reduced_tiles_almost_as_embed_slide_does(tmp_path: Path) -> None:
    coarse = small_model(folder=tmp_path / "model", mpp=2.6)
    slide = write_slide(tmp_path / "slide.tif", slide_pixels(900, 1200), mpp=0.5)
    from wsidata import open_wsi

    encoder = Encoder(coarse, wsi=open_wsi(slide, store=None))
    assert (encoder.mpp, encoder.tile_px, encoder.stride_px) == (0.5, math.ceil(32 * 5.2), round(32 * 5.2))
    with open_image(slide) as image:
        whole = Windows(image, 0.5, 2.6, WINDOW_PX)
        corner = np.array([301.0, 404.0])
        tile = image.read(301, 404, encoder.tile_px, encoder.tile_px)
        off = np.abs(encoder.get_transform()(tile).permute(1, 2, 0).numpy().astype(int) - whole.read(corner))
    assert 0 < off.mean() < 4


@pytest.mark.parametrize("kind", ["macenko", "standardized"])
def test_a_model_of_fitted_colors_needs_the_slide(kind: str, tmp_path: Path) -> None:
    stained = small_model(folder=tmp_path, stain=kind)
    with pytest.raises(ModelError, match=rf"patches of {kind} colors.* give the slide, Encoder\(model, wsi=wsi\)"):
        Encoder(stained)


def test_slides_whose_colors_cannot_be_fitted(standardized: Any, tmp_path: Path) -> None:
    from wsidata import open_wsi

    unknown = open_wsi(write_slide(tmp_path / "unknown.tif", slide_pixels(320, 480), mpp=None), store=None)
    with pytest.raises(ScaleError, match=r"does not say its microns per pixel; say them with wsi\.set_mpp"):
        Encoder(standardized, wsi=unknown)
    unknown.set_mpp(0.5)
    assert Encoder(standardized, wsi=unknown)
    with pytest.raises(ModelError, match="does not hold the stain they were brought to"):
        Encoder(replace(standardized, release=Release()), wsi=unknown)
    write_slide(tmp_path / "unknown.tif", slide_pixels(320, 320), mpp=None)
    with pytest.raises(DataError, match=r"has 320 x 320 px, LazySlide has 480 x 320 px of it open"):
        Encoder(standardized, wsi=unknown)
    (tmp_path / "unknown.tif").unlink()
    with pytest.raises(DataError, match="is no file here"):
        Encoder(standardized, wsi=unknown)


@pytest.mark.real
def test_a_scanned_slide(shared_data: Path, tmp_path: Path) -> None:
    coarse = small_model(folder=tmp_path / "model", mpp=2.0)
    wsi = run(shared_data / "wsi" / "cmu_small_region.svs", coarse)
    assert len(wsi["tiles"]) == (2220 * 0.499 // 64) * (2967 * 0.499 // 64)
    check(wsi, coarse)


def test_what_is_refused(model: Any) -> None:
    with pytest.raises(
        ModelError,
        match=r"a tile has 64 x 64 px; the model takes 32: cut them with zs\.pp\.tile_tissues\(wsi, 32, stride_px=32, mpp=",
    ):
        Encoder(model).get_transform()(np.zeros((64, 64, 3), dtype=np.uint8))
    with pytest.raises(ModelError, match=r"features have shape \(2, 3\); this model's are tiles x 192"):
        ExpressionHead(model).predict(np.zeros((2, 3)))
