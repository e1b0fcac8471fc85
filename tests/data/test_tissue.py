import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.images import ArrayImage
from stexpr.data.tissue import TissueMask, find_tissue, tissue_pixels

PURPLE = (150, 90, 170)


def slide(height=300, width=400, background=(245, 240, 243), noise=3.0, seed=0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), background, dtype=float) + rng.normal(0, noise, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


def disc(image: np.ndarray, x: int, y: int, radius: int, color=PURPLE) -> np.ndarray:
    rows, columns = np.ogrid[: image.shape[0], : image.shape[1]]
    inside = (columns - x) ** 2 + (rows - y) ** 2 < radius**2
    image[inside] = color
    return inside


def agreement(found: np.ndarray, truth: np.ndarray) -> float:
    return (found & truth).sum() / (found | truth).sum()


@pytest.mark.parametrize("background", [(245, 240, 243), (255, 255, 255), (235, 215, 232), (205, 205, 205)])
def test_a_stained_disc_is_found_on_any_background(background):
    image = slide(background=background)
    truth = disc(image, 200, 150, 90)
    assert agreement(tissue_pixels(image, 8.0), truth) > 0.93


def test_areas_painted_white_are_background_and_shift_nothing():
    image = slide(600, 800)
    truth = disc(image, 200, 150, 90)
    image[300:] = 255
    assert agreement(tissue_pixels(image, 8.0), truth) > 0.93


@pytest.mark.parametrize(
    "image",
    [
        slide(),
        slide(noise=8),
        slide(background=(235, 215, 232)),
        np.full((200, 200, 3), 255, np.uint8),
        np.full((200, 200, 3), 128, np.uint8),
    ],
    ids=["noise", "more noise", "pink cast", "white", "gray"],
)
def test_a_slide_without_tissue_has_none(image):
    assert not tissue_pixels(image, 8.0).any()


def test_a_gray_frame_and_a_pink_glow_are_no_tissue():
    image = slide()
    image[:20] = 150
    image[:, :20] = 150
    image[200:, 300:] = (250, 228, 240)
    truth = disc(image, 180, 130, 60)
    assert agreement(tissue_pixels(image, 8.0), truth) > 0.9


def test_a_slide_full_of_tissue_stays_whole():
    rng = np.random.default_rng(0)
    stain = rng.choice([0.8, 1.4], (300, 300, 1), p=[0.7, 0.3])
    image = (245 * np.exp(-stain * np.array([0.4, 0.7, 0.3]))).astype(np.uint8)
    assert tissue_pixels(image, 0.5).mean() > 0.99


def test_specks_and_pinholes_are_dropped():
    image = slide()
    truth = disc(image, 150, 150, 90)
    disc(image, 150, 150, 4, (250, 245, 247))
    disc(image, 350, 50, 8)
    found = tissue_pixels(image, 8.0)
    assert found[150, 150]
    assert not found[40:60, 340:360].any()
    assert agreement(found, truth) > 0.93


def test_the_mask_lies_over_the_whole_slide():
    image = slide(1500, 2000)
    truth = disc(image, 1000, 700, 450)
    mask = find_tissue(ArrayImage(image), 2.0)
    assert (mask.width, mask.height) == (2000, 1500)
    assert max(mask.mask.shape) == 500
    corners = np.array([[900.0, 600.0], [0.0, 0.0], [1300.0, 600.0]])
    expected = [truth[int(y) : int(y) + 200, int(x) : int(x) + 200].mean() for x, y in corners]
    np.testing.assert_allclose(mask.fractions(corners, 200.0), expected, atol=0.08)
    pixels = mask.within(1300.0, 600.0, 200.0, 50)
    assert pixels.shape == (50, 50)
    assert abs(pixels.mean() - expected[2]) < 0.08


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(-10, 70),
    st.floats(-10, 50),
    st.floats(0.5, 40),
)
def test_a_share_is_the_exact_area_of_the_cells_covered(seed, x, y, side):
    grid = np.random.default_rng(seed).random((12, 15)) < 0.5
    mask = TissueMask(grid, 60, 48)
    # Cells are 4 x 4 level-0 px: overlap each with the square.
    left, top = np.arange(15) * 4.0, np.arange(12) * 4.0
    across = np.clip(np.minimum(left + 4, x + side) - np.maximum(left, x), 0, None)
    down = np.clip(np.minimum(top + 4, y + side) - np.maximum(top, y), 0, None)
    expected = (grid * down[:, None] * across).sum() / side**2
    np.testing.assert_allclose(mask.fractions(np.array([[x, y]]), side), [expected], atol=1e-9)


def test_outside_the_image_there_is_no_tissue():
    mask = TissueMask(np.ones((10, 10), bool), 100, 100)
    np.testing.assert_allclose(mask.fractions(np.array([[-50.0, 0.0], [90.0, 90.0], [200.0, 0.0]]), 100.0), [0.5, 0.01, 0])
    looked_up = mask.within(-50.0, 0.0, 100.0, 10)
    assert not looked_up[:, :5].any()
    assert looked_up[:, 5:].all()


@pytest.mark.real
@pytest.mark.parametrize(
    ("path", "mpp", "low", "high"),
    [
        ("mob/MOB1.jpg", 4.36, 0.07, 0.13),
        ("mob/MOB3.jpg", 4.36, 0.08, 0.16),
        ("her2st/images/C3_5714_HE_BT_D1.jpg", 0.73, 0.12, 0.2),
    ],
)
def test_real_sections_have_the_area_one_sees(shared_data, path, mpp, low, high):
    from stexpr.data.images import open_image

    image = open_image(shared_data / path)
    try:
        mask = find_tissue(image, mpp)
    finally:
        image.close()
    assert low < mask.mask.mean() < high
    # One piece of tissue: nearly all of it lies in the largest component.
    from scipy import ndimage

    sizes = np.bincount(ndimage.label(mask.mask)[0].ravel())[1:]
    assert sizes.max() > 0.9 * sizes.sum()
