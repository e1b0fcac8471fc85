"""Square windows of an image around spots, at the pixel size a model wants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Float64, UInt8

from stexpr.data.images import SlideImage
from stexpr.data.stain import StainKind, StainProfile, fit_channels, fit_stain, sampled, thinned
from stexpr.data.tissue import TissueMask

__all__ = ["Windows"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Windows:
    """Windows of one size on one image.

    Attributes:
        image: The image.
        level0_mpp: Microns per level-0 pixel of it.
        mpp: Microns per pixel of the patches read.
        window_px: Side of the patches read.
    """

    image: SlideImage
    level0_mpp: float
    mpp: float
    window_px: int

    @property
    def side(self) -> float:
        """Side of a window in level-0 px; a side within rounding of a whole number is that number."""
        side = self.window_px * self.mpp / self.level0_mpp
        return float(round(side)) if abs(side - round(side)) < 1e-6 else side

    def corners(self, centers: Float[Array, "S 2"]) -> Float64[Array, "S 2"]:
        """Return the top-left corners of the windows around centers.

        A window starts at a whole level-0 pixel, so that at the native resolution its pixels are the image's own; its center
        is at most half a pixel from the one asked for.
        """
        corners: Array = np.round(np.asarray(centers, dtype=np.float64) - self.side / 2)
        return corners

    def inside(self, corners: Float64[Array, "S 2"]) -> Bool[Array, "S"]:
        """Return which windows lie wholly inside the image."""
        edge = np.array([self.image.width, self.image.height])
        return np.asarray(((corners >= 0) & (corners + self.side <= edge + 1e-6)).all(axis=1))

    def read(self, corner: Sequence[float] | Float64[Array, "2"]) -> UInt8[Array, "H W 3"]:
        """Read one window; what lies outside of the image is white."""
        return self.image.read(float(corner[0]), float(corner[1]), self.side, self.window_px)

    def read_all(self, corners: Float64[Array, "S 2"]) -> Iterator[UInt8[Array, "H W 3"]]:
        """Read windows in their order; what overlapping windows of an image without levels share is averaged once."""
        image = self.image.shared(corners, self.side, self.window_px)
        for x, y in corners.tolist():
            yield image.read(x, y, self.side, self.window_px)

    def fit_stain(self, kind: StainKind, mask: TissueMask, corners: Float64[Array, "S 2"]) -> StainProfile:
        """Fit the stain of the image on the tissue in a sample of its windows.

        Tissue is what the mask says; `standardized` asks each pixel's own color, as it does of a prepared cohort's patches,
        which have no mask.

        Raises:
            DataError: The tissue is too little, or has no two stains to tell apart.
        """
        some = [corners[i] for i in sampled(len(corners))]
        if kind == "standardized":
            return fit_channels(np.stack([self.read(corner) for corner in some]))
        tissue = [self.read(c)[mask.within(float(c[0]), float(c[1]), self.side, self.window_px)] for c in some]
        return fit_stain(kind, thinned(np.concatenate(tissue)))
