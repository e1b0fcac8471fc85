"""Where the pixels of an image file come from: Pillow, openslide or tifffile behind one small interface.

A raster knows the sizes of its levels from the file's header. It opens the file again when a region is first asked for and
lets go of it at `close`, so that a cohort of large images never holds more than the one being read.
"""

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from PIL import Image, ImageFile

from stexpr.errors import DataError

Box: TypeAlias = tuple[int, int, int, int]
Array: TypeAlias = np.ndarray[Any, Any]

PLAIN_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
MAX_PIXELS = 4_000_000_000
"""Largest image decoded whole; one of this size takes 16 GB, and a larger one wants a pyramid."""
MPP_RANGE = (0.05, 20.0)
"""Microns per pixel a microscope image can have. TIFF files without a scale say 72 or 300 dots per inch: 353 or 85 µm."""
_WHITE = (255, 255, 255)
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)
_LIMITS = threading.RLock()


class Raster(Protocol):
    """Pixels of one image at one or more levels, the finest first."""

    backend: str
    sizes: tuple[tuple[int, int], ...]
    mpp: float | None

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return the RGB pixels of `box` (x0, y0, x1, y1, inside the level), averaged over factor x factor; maybe no copy."""
        ...

    def close(self) -> None:
        """Let go of pixels and file; a later `region` opens the file again."""
        ...


def open_raster(path: Path) -> Raster:
    """Choose the reader of an image file by what the file is.

    Raises:
        DataError: The file is missing, or not an image that can be read.
    """
    if not path.is_file():
        raise DataError(f"image {path} does not exist; fetch the cohort's files or correct the path on its card")
    if path.suffix.lower() not in PLAIN_SUFFIXES:
        import openslide

        if openslide.OpenSlide.detect_format(str(path)) is not None:
            return OpenSlideRaster(path)
        if _starts_as_tiff(path):
            return _open_tiff(path)
    return PillowRaster(path)


def _starts_as_tiff(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _open_tiff(path: Path) -> Raster:
    tiff = TiffRaster(path)
    if len(tiff.sizes) == 1:
        # Pillow decodes the compressions of plain TIFF without further codecs.
        try:
            plain = PillowRaster(path)
        except DataError:
            return tiff
        plain.mpp = tiff.mpp
        return plain
    return tiff


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
        except _BROKEN as err:
            raise DataError(
                f"{path} is not an image that can be read ({_reason(err)}); check that the download is whole"
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
                picture.load()
                return as_rgb(picture, self.path)
        except DataError:
            raise
        except _BROKEN as err:
            raise DataError(f"image {self.path} is broken or truncated ({_reason(err)}); fetch it again") from err


class OpenSlideRaster:
    """A slide format that openslide reads."""

    backend = "openslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._slide: Any = None
        slide = self._open()
        self.sizes: tuple[tuple[int, int], ...] = tuple(slide.level_dimensions)
        self.mpp: float | None = _plausible(
            _number(slide.properties.get("openslide.mpp-x")), _number(slide.properties.get("openslide.mpp-y"))
        )

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return the pixels of `box`, transparent ones as white."""
        import openslide

        slide = self._open()
        scale = slide.level_downsamples[level]
        corner = (round(box[0] * scale), round(box[1] * scale))
        try:
            return as_rgb(slide.read_region(corner, level, (box[2] - box[0], box[3] - box[1])), self.path).reduce(factor)
        except openslide.OpenSlideError as err:
            # openslide answers nothing more after an error.
            self.close()
            raise DataError(f"slide {self.path} is broken or truncated ({_reason(err)}); fetch it again") from err

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
            except (openslide.OpenSlideError, OSError) as err:
                raise DataError(f"{self.path} is not a slide that can be read ({_reason(err)}); fetch it again") from err
        return self._slide


class TiffRaster:
    """A TIFF pyramid that openslide does not know, such as OME-TIFF; only the tiles asked for are decoded."""

    backend = "tifffile"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._decoded: dict[int, Image.Image] = {}
        pages = self._pages()
        for page in pages:
            if page.axes != "YXS" or page.shape[2] not in (3, 4) or page.dtype != np.uint8:
                self.close()
                raise DataError(
                    f"{path} holds {page.axes} {page.shape} of {page.dtype}, not 8-bit RGB (YXS); export the H&E image as RGB"
                )
        self.sizes: tuple[tuple[int, int], ...] = tuple((page.shape[1], page.shape[0]) for page in pages)
        self.mpp: float | None = self._scale(pages[0])
        self.close()

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return the pixels of `box`; a level without tiles is decoded once."""
        page = self._pages()[level]
        try:
            if page.is_tiled:
                return as_rgb(Image.fromarray(_tiles(page, box)), self.path).reduce(factor)
            if level not in self._decoded:
                self._decoded[level] = as_rgb(Image.fromarray(page.asarray()), self.path)
        except (*_BROKEN, ImportError, RuntimeError) as err:
            raise DataError(
                f"image {self.path} cannot be decoded ({_reason(err)}); fetch it again, or install imagecodecs"
            ) from err
        return cut(self._decoded[level], box, factor)

    def close(self) -> None:
        """Close the file and forget what was decoded."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._decoded.clear()

    def _pages(self) -> list[Any]:
        import tifffile

        try:
            if self._file is None:
                self._file = tifffile.TiffFile(self.path)
            return [level.keyframe for level in self._file.series[0].levels]
        except (*_BROKEN, tifffile.TiffFileError, IndexError, KeyError) as err:
            self.close()
            raise DataError(f"{self.path} is not a TIFF that can be read ({_reason(err)}); fetch it again") from err

    def _scale(self, page: Any) -> float | None:
        if self._file.is_ome and (described := _ome_scale(self._file.ome_metadata)) is not None:
            return described
        unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
        steps = [page.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY"]
        return _plausible(*(unit * below / above if unit and above else None for above, below in steps))


def _tiles(page: Any, box: Box) -> Array:
    x0, y0, x1, y1 = box
    height, width = page.tilelength, page.tilewidth
    across = -(-page.imagewidth // width)
    block = np.full((y1 - y0, x1 - x0, page.shape[2]), 255, dtype=np.uint8)
    source = page.parent.filehandle
    for row in range(y0 // height, -(-y1 // height)):
        for column in range(x0 // width, -(-x1 // width)):
            index = row * across + column
            source.seek(page.dataoffsets[index])
            data = source.read(page.databytecounts[index])
            tile = page.decode(data, index, jpegtables=page.jpegtables)[0] if data else None
            if tile is None:
                continue
            top, left = row * height, column * width
            piece = tile[0, max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
            start_y, start_x = max(top - y0, 0), max(left - x0, 0)
            block[start_y : start_y + piece.shape[0], start_x : start_x + piece.shape[1]] = piece
    return block


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


def _ome_scale(text: str) -> float | None:
    import xml.etree.ElementTree as ElementTree

    to_um = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3}
    pixels = next((node for node in ElementTree.fromstring(text).iter() if node.tag.endswith("Pixels")), None)
    if pixels is None:
        return None
    steps = []
    for axis in "XY":
        value = _number(pixels.get(f"PhysicalSize{axis}"))
        unit = to_um.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        steps.append(value * unit if value is not None and unit is not None else None)
    return _plausible(*steps)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _plausible(x: float | None, y: float | None) -> float | None:
    """Return the pixel size if it is one: both axes known, within 2 % of each other, possible for a microscope."""
    if x is None or y is None or not MPP_RANGE[0] <= x <= MPP_RANGE[1] or abs(x - y) > 0.02 * x:
        return None
    return (x + y) / 2


def _reason(err: BaseException) -> str:
    return " ".join(str(err).split()) or type(err).__name__
