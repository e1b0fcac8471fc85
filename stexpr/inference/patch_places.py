"""Where the patches of a bag lie on their slide, in level-0 pixels where that is known, and what they look like."""

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64, UInt8

from stexpr.data.bags import Bag
from stexpr.data.images import SlideImage

__all__ = ["PatchPlaces", "patch_pixels", "places_of"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

CUT_PX: Final = 128
"""Side of patches cut out of a slide, where the bag does not say how the encoder saw them."""


@dataclass(frozen=True)
class PatchPlaces:
    """Squares of the patches.

    Attributes:
        corners: Top-left, x then y.
        side: Of every square.
        unit: Level-0 pixels, or microns where the file has these and nothing says how many make a pixel.
        mpp: Microns per unit; None where unknown.
        guessed: Whether the side is the distance of neighbors, as the file does not say it.
    """

    corners: Float64[Array, "N 2"]
    side: float
    unit: Literal["px", "um"]
    mpp: float | None
    guessed: bool


def places_of(bag: Bag, image: SlideImage | None = None) -> PatchPlaces:
    """Place the patches of a bag.

    Args:
        bag: The bag.
        image: Its slide, where given, for the microns per pixel that the bag does not tell.

    Raises:
        DataError: The bag cannot be read.
    """
    corners, side = bag.coords(), bag.side
    mpp = bag.level0_mpp or (image.mpp if image is not None else None)
    guessed = side is None
    if side is None:
        side = _spacing(corners)
    if bag.unit == "um":
        if mpp is None:
            return PatchPlaces(corners, side, "um", 1.0, guessed)
        corners, side = corners / mpp, side / mpp
    elif mpp is None and not guessed and bag.mpp is not None and bag.patch_px is not None:
        mpp = bag.mpp * bag.patch_px / side
    return PatchPlaces(corners, side, "px", mpp, guessed)


def patch_pixels(bag: Bag, index: Int64[Array, "M"], image: SlideImage | None = None) -> list[UInt8[Array, "H W 3"]] | None:
    """Return some patches as pictures, in the order asked for: those the bag holds, else cut out of its slide.

    Returns:
        None where there are neither.

    Raises:
        DataError: Bag or slide cannot be read.
    """
    if bag.has_patches:
        ascending, place = np.unique(index, return_inverse=True)
        stored = bag.patches(ascending)
        return [stored[i] for i in place]
    places = places_of(bag, image)
    if image is None or places.unit == "um":
        return None
    size = bag.patch_px or CUT_PX
    return [image.read(float(x), float(y), places.side, size) for x, y in places.corners[index]]


def _spacing(corners: Float64[Array, "N 2"]) -> float:
    """Return the typical distance from a patch to the next along an axis; of a single patch 1."""
    from scipy.spatial import cKDTree

    if len(corners) < 2:
        return 1.0
    distance, _ = cKDTree(corners).query(corners, k=2, p=np.inf)
    return float(np.median(distance[:, 1])) or 1.0
