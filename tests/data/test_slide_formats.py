"""Slides in scanners' formats, and TIFFs too large to be decoded whole."""

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from slide_formats import WRITERS, write_dicom
from slides import slide_pixels
from stexpr.data import images, rasters, tiff
from stexpr.data.images import open_image
from stexpr.errors import DataError

PIXELS = slide_pixels()


@pytest.mark.parametrize("name", WRITERS)
def test_a_scanners_format_is_read_with_its_scale_and_levels(tmp_path, name):
    WRITERS[name](tmp_path / name, PIXELS)
    with open_image(tmp_path / name) as image:
        assert (image.backend, image.mpp) == ("openslide", pytest.approx(0.5))
        assert (image.width, image.height) == ((1000, 700) if name == "a.scn" else (900, 600))  # SCN: with what was not scanned
        found = image.read(300, 200, 200, 200).astype(int)
        assert np.abs(found - PIXELS[200:400, 300:500]).mean() < 4
        quarter = image.read(300, 200, 200, 50).astype(int)  # of the level of a quarter, which has every fourth pixel
        assert np.abs(quarter - PIXELS[200:400:4, 300:500:4]).mean() < 6


def test_a_dicom_slide_is_its_folder_or_one_of_its_files(tmp_path):
    write_dicom(tmp_path / "slide", PIXELS)
    (tmp_path / "slide" / "0.txt").write_text("not of the slide")
    by_folder, by_file = open_image(tmp_path / "slide"), open_image(tmp_path / "slide" / "2.dcm")
    np.testing.assert_array_equal(by_folder.read(0, 0, 600, 100), by_file.read(0, 0, 600, 100))
    (tmp_path / "other").mkdir()
    with pytest.raises(DataError, match="other is a folder without a DICOM slide"):
        open_image(tmp_path / "other")
    content = (tmp_path / "slide" / "1.dcm").read_bytes()
    (tmp_path / "slide" / "1.dcm").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="slide"):
        open_image(tmp_path / "slide").read(0, 0, 600, 600)


def test_an_mrxs_file_without_its_folder_says_so(tmp_path):
    (tmp_path / "a.mrxs").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(DataError, match=r"a\.mrxs lacks its folder: an MRXS slide is the file and .*/a beside it"):
        open_image(tmp_path / "a.mrxs")


@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("rows", [7, 64, 600])
def test_a_large_tiff_in_strips_is_read_by_its_strips(tmp_path, monkeypatch, rows, bigtiff):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", rowsperstrip=rows, compression="zlib", bigtiff=bigtiff)
    assert open_image(path).backend == "pillow"
    monkeypatch.setattr(images, "_WHOLE_PX", 1000)
    monkeypatch.setattr(tiff, "CACHE_BYTES", 3 * 900 * 64)  # one strip or a few
    with open_image(path) as image:
        assert image.backend == "tifffile"
        for x, y in ((0, 0), (300, 211), (850, 560), (10, 10)):
            expected = np.full((100, 100, 3), 255, dtype=np.uint8)
            part = PIXELS[y : y + 100, x : x + 100]
            expected[: part.shape[0], : part.shape[1]] = part
            np.testing.assert_array_equal(image.read(x, y, 100, 100), expected)


@settings(deadline=None, max_examples=25)
@given(size=st.integers(20, 400), band=st.integers(1, 200_000))
@pytest.mark.parametrize("backend", ["openslide", "tifffile"])
def test_a_view_of_the_whole_read_in_bands_is_the_view_read_at_once(tmp_path_factory, backend, size, band):
    folder = tmp_path_factory.getbasetemp()
    path = folder / f"{backend}.ome.tif" if backend == "tifffile" else folder / f"{backend}.tif"
    if not path.exists():
        tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(128, 128), compression="zlib")
    raster = rasters.OpenSlideRaster(path) if backend == "openslide" else tiff.TiffRaster(path)
    with images.SlideImage(path, raster) as image, pytest.MonkeyPatch.context() as patch:
        at_once = image.thumbnail(size)
        patch.setattr(rasters, "_BAND_PX", band)
        np.testing.assert_array_equal(image.thumbnail(size), at_once)


def test_decoded_tiles_are_kept_within_bounds(tmp_path, monkeypatch):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", tile=(64, 64), compression="zlib")
    monkeypatch.setattr(tiff, "CACHE_BYTES", 10 * 64 * 64 * 3)
    raster = tiff.TiffRaster(path)
    for x in range(0, 800, 50):
        raster.region(0, (x, 0, x + 64, 200))
        assert 0 < raster._decoded_bytes == sum(tile.nbytes for tile in raster._decoded.values()) <= 10 * 64 * 64 * 3
    raster.close()
    assert raster._decoded_bytes == len(raster._decoded) == 0
