"""One reader for every image: a square in level-0 pixels comes back resampled to the size wanted.

A pyramid is read at the level just finer than asked for; an image without levels is decoded once and kept until `close`.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageFilter

from stexpr.data.averaged import SharedBlocks, WithSmall, whole_blocks
from stexpr.data.rasters import Box, OpenSlideRaster, PillowRaster, Raster, cut, slide_vendor
from stexpr.data.tiff import TiffRaster
from stexpr.errors import DataError

__all__ = ["ArrayImage", "SlideImage", "open_image"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Number: TypeAlias = float | int

_PLAIN_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_WHITE = (255, 255, 255)
_WHOLE_PX = 250_000_000
"""A TIFF without tiles is decoded whole up to this size, and by its strips above."""
_GAP = 2
"""Before a strong reduction, pixels are averaged in blocks that leave at least this factor to the filter, which keeps cutting
patches cheap beside decoding the image."""
_RIM_PX = 1
"""A masked background ends in a rim of mixed pixels, which is masked too."""


class SlideImage:
    """An image whose squares are read by level-0 coordinates, whatever the file format.

    Attributes:
        path: The file.
        width: Level-0 width, px.
        height: Level-0 height, px.
        mpp: Microns per pixel according to the file itself, None where it does not say or says the impossible.
    """

    def __init__(
        self,
        path: Path,
        raster: Raster,
        *,
        blank: Sequence[tuple[int, int, int, int]] = (),
        blank_below: int | None = None,
        downsamples: Sequence[float] = (),
    ) -> None:
        self.path = path
        self.width, self.height = raster.sizes[0]
        self.mpp = raster.mpp
        self._raster = raster
        self._blank = tuple(blank)
        self._blank_below = blank_below
        sizes = raster.sizes
        self._downsamples = list(downsamples) or [(self.width / width + self.height / height) / 2 for width, height in sizes]

    @property
    def backend(self) -> str:
        """What reads the file: `openslide`, `tifffile` or `pillow`."""
        return self._raster.backend

    def read(self, x: Number, y: Number, side: Number, size: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read a square.

        Reduction is anti-aliased. A square on whole pixels asked for at its own size comes back bit for bit. What lies
        outside the image is white.

        Args:
            x: Left edge, level-0 px; may be a fraction.
            y: Top edge, level-0 px.
            side: Side of the square, level-0 px.
            size: Side of the result, px.

        Returns:
            RGB, size x size, in an array of its own.

        Raises:
            DataError: The file is broken or truncated.
        """
        return self._resampled((x, y, x + side, y + side), (size, size))

    def thumbnail(self, max_px: int) -> UInt8[np.ndarray, "H W 3"]:
        """Read the whole image so that its longer side has at most `max_px`; it is never enlarged."""
        return self._resampled((0, 0, self.width, self.height), self._thumbnail_size(max_px))

    def overview(self, max_px: int) -> "SlideImage":
        """Return the same image with a small level beside its own, from which `thumbnail(max_px)` is read to the same pixels.

        For several views of an image without levels, each of which would else go through all of its pixels. An image that has
        levels, or is not much larger than asked for, is returned as it is. Single patches belong to the image itself.
        """
        width, height = self._thumbnail_size(max_px)
        factor = int(min(self.width / width, self.height / height) / _GAP)
        if factor < 2 or len(self._downsamples) > 1:
            return self
        return SlideImage(self.path, WithSmall(self, factor), downsamples=(1.0, float(factor)))

    def shared(self, corners: Float[Array, "S 2"], side: Number, size: int) -> "SlideImage":
        """Return the same image, from which `read` reads these squares to the same pixels, in less time where they overlap.

        What they have in common is averaged once, before the first is read, and kept by the image returned. An image that has
        levels, and one whose squares do not overlap or shrink little, is returned as it is.

        Args:
            corners: Top-left corners of the squares, x then y, level-0 px.
            side: Side of the squares, level-0 px.
            size: Side of what is read of each, px.
        """
        factor = int(side / size / _GAP)
        if factor < 2 or len(self._downsamples) > 1 or not len(corners):
            return self
        low, high = np.maximum(corners.min(axis=0), 0), np.minimum(corners.max(axis=0) + side, (self.width, self.height))
        if (high <= low).any() or np.prod(high - low) >= len(corners) * side**2:
            return self
        return SlideImage(self.path, SharedBlocks(self, whole_blocks((*low.tolist(), *high.tolist()), factor), factor))

    def block(self, level: int, box: Box, factor: int) -> Image.Image:
        """Return an area of a level in whole blocks of factor x factor px, averaged, white where it leaves the image."""
        width, height = self._raster.sizes[level]
        inner = (max(box[0], 0), max(box[1], 0), min(box[2], width), min(box[3], height))
        size = ((box[2] - box[0]) // factor, (box[3] - box[1]) // factor)
        if inner[0] >= inner[2] or inner[1] >= inner[3]:
            return Image.new("RGB", size, _WHITE)
        holes = self._holes(level, inner)
        if self._blank_below is None and not holes:
            piece = self._raster.region(level, inner, factor)
        else:
            piece = self._blanked(level, inner, holes).reduce(factor)
        if piece.size == size:
            return piece
        canvas = Image.new("RGB", size, _WHITE)
        canvas.paste(piece, ((inner[0] - box[0]) // factor, (inner[1] - box[1]) // factor))
        return canvas

    def close(self) -> None:
        """Let go of pixels and file; a later read opens it again."""
        self._raster.close()

    def __enter__(self) -> "SlideImage":
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _thumbnail_size(self, max_px: int) -> tuple[int, int]:
        scale = min(1.0, max_px / max(self.width, self.height))
        return max(1, round(self.width * scale)), max(1, round(self.height * scale))

    def _resampled(self, area: tuple[Number, Number, Number, Number], size: tuple[int, int]) -> UInt8[Array, "H W 3"]:
        """Cut an area out of the fitting level, average it in blocks if it shrinks a lot, then filter to the size."""
        step = min((area[2] - area[0]) / size[0], (area[3] - area[1]) / size[1])
        level = max((i for i, down in enumerate(self._downsamples) if down <= max(1.0, step) * 1.001), default=0)
        down = self._downsamples[level]
        x0, y0, x1, y1 = (edge / down for edge in area)
        factor = max(1, int(step / down / _GAP))
        # The block starts on the grid of the averaged pixels, whose origin is the image's, also left of or above it.
        left, top = (math.floor(edge / factor) * factor for edge in (x0, y0))
        # A rounding error of the last digit must not add a column, nor shift the filter.
        columns, rows = (max(1, math.ceil((end - start) / factor - 1e-6)) for start, end in ((left, x1), (top, y1)))
        block = self.block(level, (left, top, left + columns * factor, top + rows * factor), factor)
        edges = ((x0 - left) / factor, (y0 - top) / factor, (x1 - left) / factor, (y1 - top) / factor)
        if block.size == size and all(abs(edge - at) <= 1e-6 for edge, at in zip(edges, (0, 0, *size), strict=True)):
            return _rgb(block)
        inside = (edges[0], edges[1], min(edges[2], columns), min(edges[3], rows))
        # A triangle scaled to the reduction: no aliases, no ringing, and what the networks resize with.
        return _rgb(block.resize(size, Image.Resampling.BILINEAR, box=inside))

    def _holes(self, level: int, box: Box) -> list[Box]:
        """Cut the masked rectangles to an area of a level, in the area's own coordinates."""
        scale = 1 / self._downsamples[level]
        cut = (_overlap(tuple(round(edge * scale) for edge in rectangle), box) for rectangle in self._blank)
        return [hole for hole in cut if hole is not None]

    def _blanked(self, level: int, box: Box, holes: list[Box]) -> Image.Image:
        """Read an area of a level and paint what is masked white."""
        if self._blank_below is None:
            piece = self._raster.region(level, box).convert("RGB")
        else:
            width, height = self._raster.sizes[level]
            wide = (
                max(box[0] - _RIM_PX, 0),
                max(box[1] - _RIM_PX, 0),
                min(box[2] + _RIM_PX, width),
                min(box[3] + _RIM_PX, height),
            )
            piece = self._raster.region(level, wide).convert("RGB")
            piece.paste(_WHITE, mask=_dark(piece, self._blank_below))
            piece = piece.crop((box[0] - wide[0], box[1] - wide[1], box[2] - wide[0], box[3] - wide[1]))
        for hole in holes:
            piece.paste(_WHITE, hole)
        return piece


class ArrayImage(SlideImage):
    """The same over RGB pixels in memory."""

    def __init__(self, pixels: UInt8[np.ndarray, "H W 3"], *, mpp: float | None = None, name: str = "array") -> None:
        super().__init__(Path(name), _ArrayRaster(pixels, mpp))


class _ArrayRaster:
    backend = "pillow"

    def __init__(self, pixels: UInt8[Array, "H W 3"], mpp: float | None) -> None:
        self._pixels = Image.fromarray(pixels)
        self.sizes: tuple[tuple[int, int], ...] = (self._pixels.size,)
        self.mpp = mpp

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        return cut(self._pixels, box, factor)

    def close(self) -> None:
        """Nothing to let go of: the pixels are the only copy."""


def open_image(path: Path, *, blank: Sequence[tuple[int, int, int, int]] = (), blank_below: int | None = None) -> SlideImage:
    """Open an image file by its header; pixels are decoded at the first read.

    Args:
        path: A slide (openslide), an OME or other TIFF pyramid, a JPEG, PNG or plain TIFF. A DICOM slide is one of its files or
            their folder; an MRXS slide is the .mrxs file, with its folder beside it.
        blank: Level-0 rectangles (x0, y0, x1, y1) painted white, such as an inset picture.
        blank_below: Pixels none of whose channels is above this value are background that somebody blacked out: they and
            the rim of mixed pixels around them are painted white.

    Raises:
        DataError: The file is missing, not an image, or (at the first read) truncated: it is never read as half grey.

    Example:
        >>> from stexpr.data.images import open_image
        >>> with open_image(path) as image:  # doctest: +SKIP
        ...     patch = image.read(x=1200.5, y=800, side=527.4, size=112)
    """
    return SlideImage(path, _open_raster(path), blank=blank, blank_below=blank_below)


def _open_raster(path: Path) -> Raster:
    """Choose the reader of an image file by what the file is."""
    if path.is_dir():
        return OpenSlideRaster(_dicom_file(path))
    if not path.is_file():
        raise DataError(f"image {path} does not exist; fetch the cohort's files or correct the path on its card")
    if path.suffix.lower() == ".mrxs" and not path.with_suffix("").is_dir():
        raise DataError(f"slide {path} lacks its folder: an MRXS slide is the file and {path.with_suffix('')} beside it")
    if path.suffix.lower() not in _PLAIN_SUFFIXES:
        vendor = slide_vendor(path)
        # openslide takes any tiled TIFF, but sees neither the levels of an OME-TIFF nor its scale.
        if vendor not in (None, "generic-tiff"):
            return OpenSlideRaster(path)
        if vendor or _starts_as_tiff(path):
            return _open_tiff(path, tiled=vendor is not None)
    return PillowRaster(path)


def _dicom_file(folder: Path) -> Path:
    """Find a file of the DICOM slide in a folder; openslide finds its other files by itself."""
    for path in sorted(folder.iterdir()):
        if path.is_file() and slide_vendor(path) == "dicom":
            return path
    raise DataError(f"{folder} is a folder without a DICOM slide; give the slide's file (of MRXS, the .mrxs file beside it)")


def _starts_as_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _open_tiff(path: Path, tiled: bool) -> Raster:
    tiff = TiffRaster(path)
    if len(tiff.sizes) > 1 or (not tiled and math.prod(tiff.sizes[0]) > _WHOLE_PX):
        return tiff
    # Without levels in the OME manner, the others know more: openslide levels of other manners, Pillow more compressions.
    other = OpenSlideRaster(path) if tiled else PillowRaster(path)
    other.mpp = tiff.mpp
    return other


def _rgb(picture: Image.Image) -> UInt8[Array, "H W 3"]:
    return np.array(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _overlap(rectangle: tuple[int, ...], box: Box) -> Box | None:
    """Cut a rectangle to a box, in the box's own coordinates."""
    x0, y0, x1, y1 = rectangle
    x0, y0, x1, y1 = max(x0, box[0]), max(y0, box[1]), min(x1, box[2]), min(y1, box[3])
    return (x0 - box[0], y0 - box[1], x1 - box[0], y1 - box[1]) if x0 < x1 and y0 < y1 else None


def _dark(piece: Image.Image, limit: int) -> Image.Image:
    pixels = np.asarray(piece)
    mask = Image.fromarray(np.where(pixels.max(axis=2) <= limit, 255, 0).astype(np.uint8))
    return mask.filter(ImageFilter.MaxFilter(2 * _RIM_PX + 1))
