"""Where patches lie and what they look like, whatever wrote the bag."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from slides import slide_pixels
from stexpr.data.bags import Bag, BagRows, write_bag
from stexpr.data.images import ArrayImage
from stexpr.inference.patch_places import patch_pixels, places_of

CORNERS = 64 * np.column_stack([np.arange(12) % 4, np.arange(12) // 4])


def bag_of(folder: Path, *, pixels: bool = False) -> Bag:
    features = np.zeros((12, 3), dtype=np.float32)
    patches = np.repeat(np.arange(12, dtype=np.uint8), 8 * 8 * 3).reshape(12, 8, 8, 3) if pixels else None
    rows = BagRows(features, CORNERS, patches=patches)
    return write_bag(folder / "a.h5", [rows], mpp=0.5, patch_px=32, side=64.0, encoder="x")


def test_squares_are_those_of_the_file(tmp_path: Path) -> None:
    places = places_of(bag_of(tmp_path))
    np.testing.assert_array_equal(places.corners, CORNERS)
    assert (places.side, places.unit, places.mpp, places.guessed) == (64.0, "px", 0.25, False)


def test_a_side_that_is_not_told_is_the_distance_of_neighbors(tmp_path: Path) -> None:
    places = places_of(replace(bag_of(tmp_path), side=None, mpp=None, patch_px=None))
    assert (places.side, places.guessed, places.mpp) == (64.0, True, None)


def test_microns_become_pixels_where_the_slide_tells_how_many(tmp_path: Path) -> None:
    bag = replace(bag_of(tmp_path), unit="um")
    assert places_of(bag).unit == "um"
    places = places_of(bag, ArrayImage(slide_pixels(100, 100), mpp=0.5))
    assert (places.unit, places.side, places.mpp) == ("px", 128.0, 0.5)
    np.testing.assert_allclose(places.corners, 2.0 * CORNERS)


def test_patches_are_those_stored_in_the_order_asked_for(tmp_path: Path) -> None:
    pictures = patch_pixels(bag_of(tmp_path, pixels=True), np.array([7, 2, 7]))
    assert pictures is not None
    assert [picture[0, 0, 0] for picture in pictures] == [7, 2, 7]


def test_patches_that_are_not_stored_are_cut_out_of_the_slide(tmp_path: Path) -> None:
    bag, pixels = bag_of(tmp_path), slide_pixels(192, 256)
    assert patch_pixels(bag, np.array([0])) is None
    assert patch_pixels(replace(bag, unit="um"), np.array([0]), ArrayImage(pixels)) is None
    pictures = patch_pixels(replace(bag, patch_px=64), np.array([5, 0]), ArrayImage(pixels))
    assert pictures is not None
    np.testing.assert_array_equal(pictures[0], pixels[64:128, 64:128])
    np.testing.assert_array_equal(pictures[1], pixels[:64, :64])
