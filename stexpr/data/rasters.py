"""Where the pixels of an image file come from: Pillow or openslide (or tifffile, in `tiff`) behind one small interface.

A raster knows the sizes of its levels from the file's header. It opens the file again when a region is first asked for and
lets go of it at `close`, so that a cohort of large images never holds more than the one being read.
"""

import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from PIL import Image, ImageFile

from stexpr.errors import DataError

Box: TypeAlias = tuple[int, int, int, int]
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MAX_PIXELS = 4_000_000_000
"""Largest image decoded whole; one of this size takes 16 GB, and a larger one wants a pyramid."""
MPP_RANGE = (0.05, 20.0)
"""Microns per pixel a microscope image can have. TIFF files without a scale say 72 or 300 dots per inch: 353 or 85 µm."""
CACHE_BYTES = 256_000_000
"""Decoded tiles kept of one file. Patches read row by row meet a tile again with the next row: two rows of tiles of a slide of
100,000 px fit."""
_WHITE = (255, 255, 255)
_BAND_PX = 16_000_000
"""Pixels decoded at a time for a reduced view."""
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_LIMITS = threading.RLock()


@runtime_checkable
class Raster(Protocol):
    """Pixels of one image at one or more levels, the finest first."""

    backend: str
    sizes: tuple[tuple[int, int], ...]
    mpp: float | None

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return `box` (x0, y0, x1, y1, inside the level), averaged over factor x factor, as RGB or RGBX; maybe no copy."""
        ...

    def close(self) -> None:
        """Let go of pixels and file; a later `region` opens the file again."""
        ...


@contextmanager
def whole_images() -> Iterator[None]:
    """Let Pillow read large images, and refuse truncated ones, inside the block only.

    Both are global switches of Pillow that another library may have set.
    """
    with _LIMITS:
        before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
        Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = MAX_PIXELS, False
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES = before


class PillowRaster:
    """An image without levels, decoded once, at the first region, and kept until `close`."""

    backend = "pillow"

    def __init__(self, path: Path) -> None:
        self.path = path
        self.mpp: float | None = None
        self._pixels: Image.Image | None = None
        try:
            with whole_images(), Image.open(path) as header:
                self.sizes: tuple[tuple[int, int], ...] = (header.size,)
        except BROKEN as err:
            raise DataError(
                f"{path} is not an image that can be read ({reason(err)}); check that the download is whole"
            ) from err

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return the pixels of `box`; of the whole image without a copy."""
        if self._pixels is None:
            self._pixels = self._decode()
        return cut(self._pixels, box, factor)

    def close(self) -> None:
        """Forget the pixels."""
        self._pixels = None

    def _decode(self) -> Image.Image:
        try:
            with whole_images(), Image.open(self.path) as picture:
                if picture.format == "JPEG" and picture.mode == "RGB":
                    pixels = _jpeg(self.path)
                    if pixels is not None:
                        return pixels
                picture.load()
                return as_rgb(picture, self.path)
        except DataError:
            raise
        except BROKEN as err:
            raise DataError(f"image {self.path} is broken or truncated ({reason(err)}); fetch it again") from err


def _jpeg(path: Path) -> Image.Image | None:
    """Decode a JPEG with color in half the time of Pillow, to the same pixels; None where Pillow should say what is wrong.

    libjpeg fills the rest of a file that was cut off with gray, so one that does not end as JPEG files end is left to Pillow.
    """
    import imagecodecs
    import pyarrow as pa

    data = path.read_bytes()
    if not data.endswith(b"\xff\xd9"):
        return None
    try:
        # Pillow keeps four bytes a pixel itself: an array of them becomes an image of three colors without a copy.
        pixels = imagecodecs.jpeg8_decode(data, outcolorspace=imagecodecs.JPEG8.CS.EXT_RGBX)
    except (RuntimeError, ValueError):
        return None
    height, width = pixels.shape[:2]
    return Image.fromarrow(pa.array(pixels.view(np.uint32).ravel()), "RGB", (width, height))


def slide_vendor(path: Path) -> str | None:
    """Return the slide format openslide sees in a file, None if it knows none."""
    import openslide

    vendor: str | None = openslide.OpenSlide.detect_format(str(path))
    return vendor


class OpenSlideRaster:
    """A slide format that openslide reads."""

    backend = "openslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slide: Any = None
        slide = self._open()
        self.sizes: tuple[tuple[int, int], ...] = tuple(slide.level_dimensions)
        self.mpp: float | None = plausible_mpp(
            number(slide.properties.get("openslide.mpp-x")), number(slide.properties.get("openslide.mpp-y"))
        )

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return the pixels of `box`, transparent ones as white."""
        import openslide

        slide = self._open()
        scale = slide.level_downsamples[level]

        def read(part: Box) -> Image.Image:
            corner = (round(part[0] * scale), round(part[1] * scale))
            return as_rgb(slide.read_region(corner, level, (part[2] - part[0], part[3] - part[1])), self.path)

        try:
            return in_bands(read, box, factor)
        except openslide.OpenSlideError as err:
            # openslide answers nothing more after an error.
            self.close()
            raise DataError(f"slide {self.path} is broken or truncated ({reason(err)}); fetch it again") from err

    def close(self) -> None:
        """Close the slide."""
        if self._slide is not None:
            self._slide.close()
        self._slide = None

    def _open(self) -> Any:
        import openslide

        if self._slide is None:
            try:
                self._slide = openslide.OpenSlide(str(self.path))
                self._slide.set_cache(openslide.OpenSlideCache(CACHE_BYTES))
            except (openslide.OpenSlideError, OSError) as err:
                raise DataError(f"{self.path} is not a slide that can be read ({reason(err)}); fetch it again") from err
        return self._slide


def in_bands(read: Callable[[Box], Image.Image], box: Box, factor: int) -> Image.Image:
    """Read a box averaged over factor x factor px, a band at a time: a view of a slide must not need all its pixels at once."""
    width, height = box[2] - box[0], box[3] - box[1]
    band = max(1, _BAND_PX // width // factor) * factor
    if band >= height:
        return read(box) if factor == 1 else read(box).reduce(factor)
    canvas = Image.new("RGB", (-(-width // factor), -(-height // factor)))
    for top in range(0, height, band):
        part = (box[0], box[1] + top, box[2], min(box[1] + top + band, box[3]))
        canvas.paste(read(part).reduce(factor), (0, top // factor))
    return canvas


def cut(picture: Image.Image, box: Box, factor: int) -> Image.Image:
    """Cut a box out of a decoded image, averaged over factor x factor px; the whole of it at factor 1 is not copied."""
    if factor > 1:
        return picture.reduce(factor, box)
    if box == (0, 0, *picture.size):
        return picture
    with whole_images():
        return picture.crop(box)


def as_rgb(picture: Image.Image, path: Path) -> Image.Image:
    """Bring an 8-bit image to RGB; what is transparent becomes white.

    Raises:
        DataError: The image has more than eight bits a channel.
    """
    if picture.mode == "RGB":
        return picture
    if picture.mode.startswith(("I", "F")):
        raise DataError(f"image {path} has mode {picture.mode}, not eight bits a channel; export it as 8-bit RGB")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        layer = picture.convert("RGBA")
        opaque = Image.new("RGB", picture.size, _WHITE)
        opaque.paste(layer, mask=layer.getchannel("A"))
        return opaque
    return picture.convert("RGB")


def number(text: str | None) -> float | None:
    """Read a number out of metadata; None if there is none."""
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def plausible_mpp(x: float | None, y: float | None) -> float | None:
    """Return the pixel size if it is one: both axes known, within 2 % of each other, possible for a microscope."""
    if x is None or y is None or not MPP_RANGE[0] <= x <= MPP_RANGE[1] or abs(x - y) > 0.02 * x:
        return None
    return (x + y) / 2


def reason(err: BaseException) -> str:
    """Bring what a library says to one line."""
    return " ".join(str(err).split()) or type(err).__name__
