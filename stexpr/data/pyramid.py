"""Any image as a tiled TIFF pyramid, without loss: what openslide, QuPath and HEST's own tools open."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import UInt8

from stexpr.config.files import write_whole
from stexpr.data.images import SlideImage

__all__ = ["pyramid_sizes", "write_pyramid"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

TILE: Final = 256
SMALLEST: Final = 1024
"""Levels are added until the longer side is at most this."""
_CLASSIC_TIFF: Final = 3_000_000_000


def pyramid_sizes(width: int, height: int) -> list[tuple[int, int]]:
    """Return width and height of each level, halved from one to the next.

    Example:
        >>> pyramid_sizes(5000, 3001)
        [(5000, 3001), (2500, 1500), (1250, 750), (625, 375)]
    """
    sizes = [(width, height)]
    while max(sizes[-1]) > SMALLEST:
        sizes.append((max(1, width >> len(sizes)), max(1, height >> len(sizes))))
    return sizes


def write_pyramid(path: Path, image: SlideImage, mpp: float) -> None:
    """Write an image as a tiled, losslessly compressed TIFF with its levels, one tile in memory at a time.

    Args:
        path: The file.
        image: Read at its own pixels; what is masked on it is white in the file.
        mpp: Microns per pixel, written as the resolution.

    Raises:
        DataError: The folder is read-only or the disk full, or the image is broken.
    """
    import tifffile

    per_cm = 1e4 / mpp

    def write(part: Path) -> None:
        with tifffile.TiffWriter(part, bigtiff=image.width * image.height * 3 > _CLASSIC_TIFF) as file:
            for level, (width, height) in enumerate(pyramid_sizes(image.width, image.height)):
                file.write(
                    _tiles(image, level, width, height),
                    shape=(height, width, 3),
                    dtype=np.uint8,
                    tile=(TILE, TILE),
                    photometric="rgb",
                    compression="zlib",
                    resolution=(per_cm / 2**level, per_cm / 2**level),
                    resolutionunit="CENTIMETER",
                    subfiletype=int(level > 0),
                    metadata=None,
                )

    write_whole(path, write)


def _tiles(image: SlideImage, level: int, width: int, height: int) -> Iterator[UInt8[Array, "H W 3"]]:
    side = TILE << level
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            yield image.read(left << level, top << level, side, TILE)
