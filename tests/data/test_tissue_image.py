"""The picture under the spots; what the tools do with it is tested in tests/tl."""

from pathlib import Path

import anndata
import numpy as np
import pytest
from PIL import Image

from stexpr.data.images import ArrayImage
from stexpr.data.tissue_image import find_image, library_of, pixel_size
from stexpr.errors import DataError, ScaleError

RED, WHITE = (200, 10, 20), (255, 255, 255)


def adata_with(**library: object) -> anndata.AnnData:
    return anndata.AnnData(np.zeros((3, 1)), uns={"spatial": {"lib": library}})


def picture(color: tuple[int, int, int] = RED, side: int = 20) -> np.ndarray:
    return np.full((side, side, 3), color, dtype=np.uint8)


def test_the_finest_stored_picture_is_taken() -> None:
    images = {"lowres": picture(WHITE, 5), "hires": picture(), "segmentation": picture(WHITE)}
    found = find_image(adata_with(images=images, scalefactors={"tissue_hires_scalef": 0.1, "tissue_lowres_scalef": 0.025}))
    np.testing.assert_array_equal(found.image.thumbnail(20), picture())
    assert found.scale == 0.1
    assert "'hires'" in found.source
    del images["hires"]
    low = find_image(adata_with(images=images, scalefactors={"tissue_lowres_scalef": 0.025}))
    assert (low.scale, low.image.width) == (0.025, 5)


def test_what_is_transparent_is_white() -> None:
    pixels = np.dstack([picture(), np.zeros((20, 20), np.uint8)])
    pixels[:10, :, 3] = 255
    found = find_image(anndata.AnnData(np.zeros((3, 1))), pixels)
    np.testing.assert_array_equal(found.image.thumbnail(20), np.vstack([picture()[:10], picture(WHITE)[10:]]))


def test_the_size_is_that_of_the_image_the_spots_were_found_on(tmp_path: Path) -> None:
    Image.fromarray(picture(side=203)).save(tmp_path / "full.png")
    adata = adata_with(images={"hires": picture()}, scalefactors={"tissue_hires_scalef": 0.1})
    assert find_image(adata, tmp_path / "full.png").image.width == 203  # 20 px of 1/0.1, but for rounding
    with pytest.raises(DataError, match=r"has 20 x 20 px, but .* about 200 x 200 px"):
        find_image(adata, picture())


def test_the_file_says_the_pixel_size_at_the_scale_of_the_spots() -> None:
    adata = adata_with(images={"hires": picture()}, scalefactors={"tissue_hires_scalef": 0.1, "microns_per_pixel": 0.3})
    full = ArrayImage(picture(side=200), mpp=0.25)
    found = find_image(adata, full)
    size = pixel_size(found, library_of(adata, "lib"))
    assert (size.mpp, size.source) == (0.25, "image file; scale factors says 0.3")
    assert pixel_size(found, {}, mpp=0.2499).source == "argument"
    stored = find_image(adata)
    assert pixel_size(stored, library_of(adata, None)).mpp == 0.3
    with pytest.raises(ScaleError, match="0 um/px is absurd"):
        pixel_size(stored, {}, mpp=0.0)


def test_libraries() -> None:
    assert library_of(anndata.AnnData(np.zeros((3, 1))), "any") == {}
    assert library_of(anndata.AnnData(np.zeros((3, 1)), uns={"spatial": "text"}), None) == {}
    two = anndata.AnnData(np.zeros((3, 1)), uns={"spatial": {"a": {"images": {}}, "b": {}}})
    assert library_of(two, None) == {}
    assert library_of(two, "a") == {"images": {}}
    with pytest.raises(DataError, match=r"holds no library 'c'; known: a, b"):
        library_of(two, "c")
