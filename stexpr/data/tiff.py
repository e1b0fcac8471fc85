"""TIFF pyramids that openslide does not know, such as OME-TIFF, and large TIFFs in strips."""

from collections import OrderedDict
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stexpr.data.rasters import BROKEN, CACHE_BYTES, Box, as_rgb, in_bands, number, plausible_mpp, reason
from stexpr.errors import DataError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class TiffRaster:
    """A TIFF read by its tiles or strips: only those asked for are decoded, and the latest are kept."""

    backend = "tifffile"

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: Any = None
        self._decoded: OrderedDict[tuple[int, int], Array] = OrderedDict()
        self._decoded_bytes = 0
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
        """Return the pixels of `box`."""
        page = self._pages()[level]
        try:
            return in_bands(lambda part: as_rgb(Image.fromarray(self._assembled(level, page, part)), self.path), box, factor)
        except (*BROKEN, ImportError, RuntimeError) as err:
            self.close()
            raise DataError(
                f"image {self.path} cannot be decoded ({reason(err)}); fetch it again, or install imagecodecs"
            ) from err

    def close(self) -> None:
        """Close the file and forget what was decoded."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._decoded.clear()
        self._decoded_bytes = 0

    def _assembled(self, level: int, page: Any, box: Box) -> UInt8[Array, "H W C"]:
        """Put a box together from tiles; a strip is a tile as wide as the image. What the file leaves out is white."""
        x0, y0, x1, y1 = box
        height, width = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
        across = -(-page.imagewidth // width)
        block = np.full((y1 - y0, x1 - x0, page.shape[2]), 255, dtype=np.uint8)
        for row in range(y0 // height, -(-y1 // height)):
            for column in range(x0 // width, -(-x1 // width)):
                tile = self._tile(level, page, row * across + column)
                if tile is None:
                    continue
                top, left = row * height, column * width
                piece = tile[max(y0 - top, 0) : y1 - top, max(x0 - left, 0) : x1 - left]
                start_y, start_x = max(top - y0, 0), max(left - x0, 0)
                block[start_y : start_y + piece.shape[0], start_x : start_x + piece.shape[1]] = piece
        return block

    def _tile(self, level: int, page: Any, index: int) -> UInt8[Array, "H W C"] | None:
        """Decode a tile unless it is among the latest; None where the file leaves it out."""
        key = (level, index)
        if key in self._decoded:
            self._decoded.move_to_end(key)
            return self._decoded[key]
        source = page.parent.filehandle
        source.seek(page.dataoffsets[index])
        data = source.read(page.databytecounts[index])
        decoded = page.decode(data, index, jpegtables=page.jpegtables)[0] if data else None
        if decoded is None:
            return None
        tile: Array = decoded[0]
        self._decoded[key] = tile
        self._decoded_bytes += tile.nbytes
        while self._decoded_bytes > CACHE_BYTES and len(self._decoded) > 1:
            self._decoded_bytes -= self._decoded.popitem(last=False)[1].nbytes
        return tile

    def _pages(self) -> list[Any]:
        import tifffile

        try:
            if self._file is None:
                self._file = tifffile.TiffFile(self.path)
            return [level.keyframe for level in self._file.series[0].levels]
        except (*BROKEN, tifffile.TiffFileError, IndexError, KeyError) as err:
            self.close()
            raise DataError(f"{self.path} is not a TIFF that can be read ({reason(err)}); fetch it again") from err

    def _scale(self, page: Any) -> float | None:
        if self._file.is_ome and (described := _ome_scale(self._file.ome_metadata)) is not None:
            return described
        unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof("ResolutionUnit", 2)))
        steps = [page.tags.valueof(f"{axis}Resolution", (0, 1)) for axis in "XY"]
        return plausible_mpp(*(unit * below / above if unit and above else None for above, below in steps))


def _ome_scale(text: str) -> float | None:
    import xml.etree.ElementTree as ElementTree

    to_um = {"nm": 1e-3, "µm": 1.0, "um": 1.0, "mm": 1e3}
    pixels = next((node for node in ElementTree.fromstring(text).iter() if node.tag.endswith("Pixels")), None)
    if pixels is None:
        return None
    steps = []
    for axis in "XY":
        value = number(pixels.get(f"PhysicalSize{axis}"))
        unit = to_um.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        steps.append(value * unit if value is not None and unit is not None else None)
    return plausible_mpp(*steps)
