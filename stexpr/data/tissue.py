"""Where a slide holds tissue: a mask from color, at a few microns per pixel."""

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, UInt8
from scipy import ndimage

from stexpr.data.images import SlideImage

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_MASK_UM_PX = 8.0
_SMOOTH_UM = 16.0
_SMALLEST_MM2 = 0.1
_THRESHOLD = (0.10, 0.15)
"""Otsu's threshold is kept in this range: below lies the glow of spilt stain and the gray of a frame, and a slide without
tissue; above, a slide full of tissue would be split into its dark and light parts. Read off the MOB and HER2ST images."""


@dataclass(frozen=True)
class TissueMask:
    """Tissue (True) and background on a grid laid over the whole image.

    Attributes:
        mask: The grid, rows x columns.
        width: Width of the image, level-0 px.
        height: Height of the image, level-0 px.
    """

    mask: Bool[Array, "H W"]
    width: int
    height: int

    def fractions(self, corners: Float[Array, "S 2"], side: float) -> Float[Array, "S"]:
        """Return the share of tissue in squares.

        Args:
            corners: Top-left corners, x then y, level-0 px.
            side: Side of the squares, level-0 px.

        Returns:
            Values in [0, 1]; what lies outside the image is no tissue.
        """
        scale = np.array(self.mask.shape[::-1]) / (self.width, self.height)
        low, high = corners * scale, (corners + side) * scale
        inside = self._area(low, high)
        squares: Array = np.clip(inside / np.prod(side * scale), 0, 1)
        return squares

    def within(self, x: float, y: float, side: float, size: int) -> Bool[Array, "size size"]:
        """Look up the pixels of a square that is read at `size` x `size`; outside the image there is no tissue."""
        steps = (np.arange(size) + 0.5) * side / size
        columns = np.floor((x + steps) * self.mask.shape[1] / self.width).astype(int)
        rows = np.floor((y + steps) * self.mask.shape[0] / self.height).astype(int)
        inside = ((rows >= 0) & (rows < self.mask.shape[0]))[:, None] & ((columns >= 0) & (columns < self.mask.shape[1]))
        found = self.mask[np.clip(rows, 0, self.mask.shape[0] - 1)][:, np.clip(columns, 0, self.mask.shape[1] - 1)]
        pixels: Array = found & inside
        return pixels

    @cached_property
    def _sums(self) -> Float[Array, "H1 W1"]:
        return np.pad(self.mask.astype(float).cumsum(0).cumsum(1), ((1, 0), (1, 0)))

    def _area(self, low: Float[Array, "S 2"], high: Float[Array, "S 2"]) -> Float[Array, "S"]:
        """Count True cells between corners; linear interpolation of the summed-area table is exact for parts of cells."""

        def below(x: Float[Array, "S"], y: Float[Array, "S"]) -> Float[Array, "S"]:
            sums: Array = ndimage.map_coordinates(self._sums, [y, x], order=1, mode="nearest")
            return sums

        (x0, y0), (x1, y1) = low.T, high.T
        return below(x1, y1) - below(x0, y1) - below(x1, y0) + below(x0, y0)


def find_tissue(image: SlideImage, mpp: float) -> TissueMask:
    """Mask the tissue of a slide.

    A pixel counts by how colored and how dark it is beside the background's own color, so a pink cast, a gray frame and
    areas painted white are background. Otsu's threshold separates; specks and pinholes below 0.1 mm² are dropped.

    Args:
        image: The slide.
        mpp: Microns per level-0 pixel.

    Returns:
        A mask at about 8 µm per pixel; all False where a slide has no tissue.
    """
    thumbnail = image.thumbnail(_mask_px(image, mpp))
    um_px = max(image.width, image.height) * mpp / max(thumbnail.shape[:2])
    return TissueMask(tissue_pixels(thumbnail, um_px), image.width, image.height)


def tissue_overview(image: SlideImage, mpp: float) -> SlideImage:
    """Return the same image with the small level that `find_tissue` reads; for more views of it, see `SlideImage.overview`."""
    return image.overview(_mask_px(image, mpp))


def tissue_pixels(image: UInt8[Array, "H W 3"], mpp: float) -> Bool[Array, "H W"]:
    """Mask the tissue in a small image; see `find_tissue`."""
    from skimage.filters import threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects

    sigma = max(1.0, _SMOOTH_UM / mpp)
    # One plane for each color: NumPy takes 25 times as long for a maximum over the last axis of three.
    smooth = [ndimage.gaussian_filter(image[..., color].astype(np.float32), sigma) for color in range(3)]
    # The background is the brightest color that covers something; never darker than 200, or a slide full of tissue
    # would be measured against tissue.
    balanced = [np.minimum(plane / np.maximum(np.percentile(plane, 95), 200), 1) for plane in smooth]
    brightest, darkest = (reduce(extreme, balanced) for extreme in (np.maximum, np.minimum))
    saturation = (brightest - darkest) / np.maximum(brightest, 1e-6)
    stained = np.sqrt(saturation * (1 - darkest))
    otsu = float(threshold_otsu(stained)) if np.ptp(stained) else 0.0  # type: ignore[no-untyped-call]
    threshold = np.clip(otsu, *_THRESHOLD)
    # In an image of a few hundred microns 0.1 mm² would be everything.
    smallest = int(min(_SMALLEST_MM2 * 1e6 / mpp**2, 0.002 * stained.size))
    found = remove_small_objects(stained > threshold, max_size=smallest)
    mask: Array = remove_small_holes(found, max_size=smallest)
    return mask


def _mask_px(image: SlideImage, mpp: float) -> int:
    """Longer side of the picture that the mask is made from."""
    longest = max(image.width, image.height)
    return int(np.clip(longest * mpp / _MASK_UM_PX, min(256, longest), 2048))
