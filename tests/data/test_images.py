from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile

from stexpr.data.images import ArrayImage, SlideImage, open_image
from stexpr.errors import DataError

PIXELS = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def smooth(height, width):
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 37 + k) + np.cos(y / (29 + 3 * k)) for k in range(3)], axis=2)
    return np.round(127.5 + 60 * waves).astype(np.uint8)


def saved(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return path


@settings(deadline=None, max_examples=30)
@given(x=st.integers(-20, 130), y=st.integers(-20, 100), side=st.integers(1, 60))
def test_native_squares_are_the_pixels_themselves_and_white_outside(x, y, side):
    padded = np.full((90 + 200, 120 + 200, 3), 255, dtype=np.uint8)
    padded[100:190, 100:220] = PIXELS
    expected = padded[y + 100 : y + 100 + side, x + 100 : x + 100 + side]
    np.testing.assert_array_equal(ArrayImage(PIXELS).read(x, y, side, side), expected)


@settings(deadline=None, max_examples=30)
@given(x=st.floats(0, 300), y=st.floats(0, 200), side=st.floats(60, 290), size=st.integers(8, 64))
def test_reduction_agrees_with_pillows_exact_filter(x, y, side, size):
    pixels = smooth(500, 600)
    expected = Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + side, y + side))
    difference = np.abs(ArrayImage(pixels).read(x, y, side, size).astype(int) - np.asarray(expected))
    assert difference[1:-1, 1:-1].max() <= 3
    assert difference.max() <= 12  # blocks are averaged whole, so the rim sees a little of what lies beyond


def test_reduction_has_no_aliases():
    stripes = np.zeros((400, 400, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    patch = ArrayImage(stripes).read(3, 3, 390, 64)[1:-1, 1:-1]
    assert np.abs(patch.astype(int) - 127).max() <= 3  # nearest-neighbor sampling would give 0 or 255


def test_a_fraction_of_a_pixel_shifts_the_content():
    ramp = np.repeat(np.arange(0, 250, 2, dtype=np.uint8)[None, :, None], 60, axis=0).repeat(3, axis=2)
    here, shifted = (ArrayImage(ramp).read(x, 10, 40, 40)[20, 5:35, 0].astype(int) for x in (20, 20.5))
    np.testing.assert_array_equal(shifted - here, 1)


@pytest.mark.parametrize("size", [8, 25, 100])
def test_a_square_larger_than_the_image_keeps_its_content_in_place(size):
    pixels = np.zeros((200, 400, 3), dtype=np.uint8)
    view = ArrayImage(pixels).read(-100, -200, 600, size)
    step = 600 / size
    black = view.max(axis=2) < 128
    ys, xs = np.nonzero(black)
    assert abs(xs.min() * step - 100) <= step
    assert abs((xs.max() + 1) * step - 500) <= step
    assert abs(ys.min() * step - 200) <= step
    assert abs((ys.max() + 1) * step - 400) <= step
    assert (view[0] == 255).all()


def test_thumbnail_keeps_the_shape_and_never_enlarges():
    image = ArrayImage(PIXELS)
    assert image.thumbnail(60).shape == (45, 60, 3)
    np.testing.assert_array_equal(image.thumbnail(4000), PIXELS)


@settings(deadline=None, max_examples=20)
@given(
    shape=st.tuples(st.integers(90, 400), st.integers(90, 400)),
    max_px=st.integers(20, 70),
    x=st.integers(-30, 380),
    side=st.integers(1, 300),
)
def test_an_overview_shows_what_the_image_shows(shape, max_px, x, side):
    image = SlideImage(Path("a"), ArrayImage(smooth(*shape))._raster, blank=[(10, 20, 60, 50)])
    overview = image.overview(max_px)
    assert (overview.width, overview.height) == (image.width, image.height)
    np.testing.assert_array_equal(overview.thumbnail(max_px), image.thumbnail(max_px))
    np.testing.assert_array_equal(overview.read(x, 5, side, side), image.read(x, 5, side, side))
    away = overview.read(0, 0, 90, 12).astype(int) - image.read(0, 0, 90, 12)
    assert abs(away).mean() < 6  # filtered by other blocks, and the same picture
    assert image.overview(max(shape)) is image


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(90, 200), st.integers(90, 200)),
    corners=st.lists(st.tuples(st.integers(-60, 190), st.integers(-60, 190)), min_size=12, max_size=30),
    side=st.floats(48, 90),
    size=st.integers(6, 24),
    blank_below=st.sampled_from([None, 90]),
)
def test_squares_that_overlap_are_read_to_the_same_pixels(shape, corners, side, size, blank_below):
    image = SlideImage(Path("a"), ArrayImage(smooth(*shape))._raster, blank=[(10, 20, 60, 50)], blank_below=blank_below)
    shared = image.shared(np.array(corners, dtype=float), side, size)
    for x, y in [*corners, (0, 0), (150, 150), (-200, 5)]:
        np.testing.assert_array_equal(shared.read(x, y, side, size), image.read(x, y, side, size))
        np.testing.assert_array_equal(shared.read(x, y, side, 2 * size), image.read(x, y, side, 2 * size))


def test_only_squares_that_overlap_and_shrink_share_anything():
    image = ArrayImage(smooth(300, 400))
    crowd, pair = np.array([[float(x), 40.0] for x in range(0, 200, 20)]), np.array([[0.0, 0.0], [300.0, 200.0]])
    assert image.shared(crowd, 80, 20) is not image
    assert image.shared(crowd, 80, 40) is image
    assert image.shared(pair, 80, 20) is image
    assert image.shared(crowd[:0], 80, 20) is image
    assert image.shared(crowd + 1000, 80, 20) is image


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"quality": 30}, {"keep_rgb": True}])
def test_jpeg_files_come_out_as_pillow_decodes_them(tmp_path, options):
    path = saved(tmp_path / "a.jpg", smooth(203, 301), **options)
    with open_image(path) as image, Image.open(path) as theirs:
        np.testing.assert_array_equal(image.thumbnail(400), np.asarray(theirs))
        np.testing.assert_array_equal(image.read(10, 20, 100, 100), np.asarray(theirs)[20:120, 10:110])
    behind = saved(tmp_path / "b.jpg", smooth(203, 301), **options)
    behind.write_bytes(path.read_bytes() + b"a note of the scanner")  # left to Pillow
    np.testing.assert_array_equal(open_image(behind).thumbnail(400), open_image(path).thumbnail(400))
    blank = open_image(path, blank=[(0, 0, 50, 50)], blank_below=20)
    assert (blank.read(0, 0, 50, 50) == 255).all()
    np.testing.assert_array_equal(blank.read(60, 60, 50, 50), open_image(path).read(60, 60, 50, 50))


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif"])
def test_lossless_files_come_back_bit_for_bit(tmp_path, name):
    with open_image(saved(tmp_path / name, PIXELS)) as image:
        assert (image.width, image.height, image.backend, image.mpp) == (120, 90, "pillow", None)
        np.testing.assert_array_equal(image.read(7, 9, 64, 64), PIXELS[9:73, 7:71])


def test_a_file_is_decoded_once_and_again_after_close(tmp_path):
    path = saved(tmp_path / "a.png", PIXELS)
    image = open_image(path)
    first = image.read(0, 0, 50, 50)
    first[:] = 0  # the result is the caller's own
    path.unlink()
    np.testing.assert_array_equal(image.read(0, 0, 50, 50), PIXELS[:50, :50])
    image.close()
    with pytest.raises(DataError, match="broken or truncated"):
        image.read(0, 0, 50, 50)


def test_masked_rectangles_are_white_and_nothing_else(tmp_path):
    path = saved(tmp_path / "a.png", PIXELS)
    image = open_image(path, blank=[(100, 0, 120, 30), (-5, 80, 10, 200)])
    expected = PIXELS.copy()
    expected[:30, 100:] = 255
    expected[80:, :10] = 255
    np.testing.assert_array_equal(image.read(0, 0, 90, 90), expected[:, :90])
    np.testing.assert_array_equal(image.read(60, 0, 60, 60), expected[:60, 60:])
    np.testing.assert_array_equal(open_image(path).read(60, 0, 60, 60), PIXELS[:60, 60:])


def test_blacked_out_background_is_white_with_its_rim_wherever_the_patch_is_cut(tmp_path):
    pixels = np.full((80, 80, 3), 200, dtype=np.uint8)
    pixels[:, :30] = 0
    pixels[:, 30] = 97  # mixed
    pixels[40, 60] = (3, 0, 9)  # a dark nucleus
    image = open_image(saved(tmp_path / "a.png", pixels), blank_below=0)
    whole = image.read(0, 0, 80, 80)
    assert (whole[:, :31] == 255).all()
    np.testing.assert_array_equal(whole[:, 31:], pixels[:, 31:])
    for x in range(26, 34):
        np.testing.assert_array_equal(image.read(x, 5, 20, 20), whole[5:25, x : x + 20])
    assert (open_image(tmp_path / "a.png", blank_below=9).read(59, 39, 3, 3) == 255).all()


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {}), ("a.jpg", {"progressive": True}), ("a.png", {}), ("a.tif", {})])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_images_are_refused_whole(tmp_path, name, options, share, monkeypatch):
    path = saved(tmp_path / name, np.random.default_rng(1).integers(0, 256, (300, 300, 3), dtype=np.uint8), **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as another library may have left it
    with pytest.raises(DataError, match=r"a\.(jpg|png|tif)"):
        open_image(path).read(0, 0, 50, 50)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_large_images_are_read_without_switching_pillows_limit_off(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    path = tmp_path / "a.png"
    Image.fromarray(PIXELS).save(path)
    assert open_image(path).thumbnail(60).shape == (45, 60, 3)
    open_image(path).read(0, 0, 90, 90)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        open_image(tmp_path / "none.jpg")
    for name in ("text.jpg", "text.tif", "text.svs"):
        (tmp_path / name).write_text("no pixels")
        with pytest.raises(DataError, match=name):
            open_image(tmp_path / name)
    (tmp_path / "head.tif").write_bytes(b"II*\0\xff\xff\0\0")
    with pytest.raises(DataError, match=r"head\.tif is not a TIFF"):
        open_image(tmp_path / "head.tif")


def test_other_modes_become_rgb_and_sixteen_bits_are_refused(tmp_path):
    Image.fromarray(np.dstack([PIXELS, np.zeros((90, 120), np.uint8)])).save(tmp_path / "clear.png")
    assert (open_image(tmp_path / "clear.png").read(0, 0, 20, 20) == 255).all()
    Image.fromarray(PIXELS[..., 0]).save(tmp_path / "grey.png")
    np.testing.assert_array_equal(open_image(tmp_path / "grey.png").read(0, 0, 20, 20)[..., 2], PIXELS[:20, :20, 0])
    Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 200).save(tmp_path / "deep.png")
    with pytest.raises(DataError, match="eight bits"):
        open_image(tmp_path / "deep.png").read(0, 0, 20, 20)


@pytest.fixture(params=[(32, 32), None], ids=["tiles", "strips"])
def pyramid(tmp_path, request):
    """A pyramid whose levels differ in color, so that a test sees which one was read."""
    path = tmp_path / "a.ome.tif"
    levels = [np.full((400 // k, 600 // k, 3), 60 * k, dtype=np.uint8) for k in (1, 2, 4)]
    levels[0][100:200, 300:400] = np.random.default_rng(0).integers(0, 256, (100, 100, 3), dtype=np.uint8)
    with tifffile.TiffWriter(path, ome=True) as file:
        metadata = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
        options = {"photometric": "rgb", "tile": request.param, "compression": "zlib"}
        file.write(levels[0], subifds=2, metadata=metadata, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **options)
    return path, levels


def test_a_pyramid_is_read_at_the_level_just_finer(pyramid):
    path, levels = pyramid
    with open_image(path) as image:
        assert (image.backend, image.width, image.height, image.mpp) == ("tifffile", 600, 400, 0.5)
        np.testing.assert_array_equal(image.read(310, 105, 80, 80), levels[0][105:185, 310:390])
        assert (image.read(0, 200, 190, 120) == 60).all()
        assert (image.read(0, 200, 190, 95) == 120).all()
        assert (image.read(0, 200, 190, 30) == 240).all()
        assert (image.read(550, 350, 100, 100)[60:] == 255).all()


def test_a_truncated_pyramid_is_refused(pyramid):
    path, _ = pyramid
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        page = file.series[0].levels[0].keyframe
        for start, length in zip(page.dataoffsets, page.databytecounts, strict=True):
            data[start : start + length] = b"\x17" * length
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match=r"a\.ome\.tif cannot be decoded"):
        open_image(path).read(0, 0, 64, 64)


def test_a_pyramid_that_is_not_rgb_is_refused(tmp_path):
    with tifffile.TiffWriter(tmp_path / "f.ome.tif") as file:
        file.write(np.zeros((64, 64), np.uint16), subifds=1, tile=(32, 32))
        file.write(np.zeros((32, 32), np.uint16), tile=(32, 32), subfiletype=1)
    with pytest.raises(DataError, match="not 8-bit RGB"):
        open_image(tmp_path / "f.ome.tif")


@pytest.mark.parametrize(
    ("resolution", "unit", "mpp"),
    [((20000, 20000), 3, 0.5), ((25400, 25400), 2, 1.0), ((72, 72), 2, None), ((20000, 30000), 3, None)],
)
def test_a_tiff_scale_counts_only_if_a_microscope_can_have_it(tmp_path, resolution, unit, mpp):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, PIXELS, photometric="rgb", resolution=resolution, resolutionunit=unit)
    image = open_image(path)
    assert image.backend == "pillow"
    assert image.mpp == (None if mpp is None else pytest.approx(mpp))
    np.testing.assert_array_equal(image.read(0, 0, 90, 90), PIXELS[:, :90])


@pytest.mark.real
def test_slides_are_read_by_openslide(shared_data):
    import openslide

    path = shared_data / "wsi" / "cmu_small_region.svs"
    with open_image(path) as image, openslide.OpenSlide(str(path)) as slide:
        assert (image.backend, image.width, image.height, image.mpp) == ("openslide", 2220, 2967, 0.499)
        expected = np.asarray(slide.read_region((500, 700), 0, (200, 200)))[..., :3]
        np.testing.assert_array_equal(image.read(500, 700, 200, 200), expected)
        assert (image.read(2200, 2900, 200, 200)[100:] == 255).all()
        image.close()
        np.testing.assert_array_equal(image.read(500, 700, 200, 200), expected)


@pytest.mark.real
def test_a_tiled_pyramid_without_maker_is_read_by_tifffile_as_openslide_would(shared_data):
    import openslide

    path = shared_data / "wsi" / "openslide_boxes.tiff"
    with open_image(path) as image, openslide.OpenSlide(str(path)) as slide:
        assert (image.backend, image.mpp) == ("tifffile", None)  # 72 dots per inch is no scale
        for level, down in enumerate((1, 2, 4)):
            expected = np.asarray(slide.read_region((40, 80), level, (40, 40)))[..., :3].astype(int)
            difference = image.read(40, 80, 40 * down, 40).astype(int) - expected
            assert np.abs(difference).mean() < 1  # JPEG decoders differ in the last digit


@pytest.mark.real
def test_a_damaged_slide_is_refused(shared_data, tmp_path):
    data = (shared_data / "wsi" / "cmu_small_region.svs").read_bytes()
    (tmp_path / "cut.svs").write_bytes(data[:1_000_000])
    with pytest.raises(DataError, match=r"cut\.svs"):
        open_image(tmp_path / "cut.svs").read(0, 0, 2000, 200)


@pytest.mark.real
def test_the_background_of_a1_is_white_and_its_tissue_untouched(shared_data):
    path = shared_data / "her2st" / "images" / "A1_HE_image_dark.png"
    raw = np.asarray(Image.open(path).convert("RGB"))
    with open_image(path, blank=[(1500, 0, 2000, 536)], blank_below=0) as image:
        assert isinstance(image, SlideImage)
        read = image.read(0, 0, 2000, 2000)
    assert (read[:536, 1500:] == 255).all()
    assert not (read.max(axis=2) == 0).any()
    changed = (read != raw[:2000]).any(axis=2) & (raw[:2000].max(axis=2) > 0)
    changed[:536, 1500:] = False
    assert changed.sum() < 6500  # the rim of the outline, one pixel wide; nothing inside the tissue
    assert not changed[900:1500, 300:1400].any()
