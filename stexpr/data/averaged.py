"""Images without levels of which a part is averaged over blocks of pixels already, so that several views share the work."""

import math
from typing import Protocol, runtime_checkable

from PIL import Image

from stexpr.data.rasters import Box, cut

__all__ = ["SharedBlocks", "Source", "WithSmall", "whole_blocks"]


@runtime_checkable
class Source(Protocol):
    """An image as it is seen: what is masked is white."""

    width: int
    height: int
    mpp: float | None

    @property
    def backend(self) -> str:
        """What reads the file."""
        ...

    def block(self, level: int, box: Box, factor: int) -> Image.Image:
        """Return an area of a level in whole blocks of factor x factor px, averaged, white where it leaves the image."""
        ...

    def close(self) -> None:
        """Let go of pixels and file."""
        ...


class WithSmall:
    """An image and, as its second level, a smaller copy of it.

    Args:
        source: The image.
        factor: Of the copy.
    """

    def __init__(self, source: Source, factor: int) -> None:
        self.backend, self.mpp = source.backend, source.mpp
        self._source = source
        self._small = source.block(0, whole_blocks((0, 0, source.width, source.height), factor), factor)
        self.sizes: tuple[tuple[int, int], ...] = ((source.width, source.height), self._small.size)

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return `box` of a level."""
        return cut(self._small, box, factor) if level else self._source.block(0, whole_blocks(box, factor), factor)

    def close(self) -> None:
        """Let go of the image; the copy stays."""
        self._source.close()


class SharedBlocks:
    """An image of which an area is averaged over blocks of one size already; what else is asked for is read as ever.

    Args:
        source: The image.
        area: Whole blocks.
        factor: Side of a block.
    """

    def __init__(self, source: Source, area: Box, factor: int) -> None:
        self.backend, self.mpp = source.backend, source.mpp
        self.sizes: tuple[tuple[int, int], ...] = ((source.width, source.height),)
        self._source, self._area, self._factor = source, area, factor
        self._averaged = source.block(0, area, factor)

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return `box`."""
        box = whole_blocks(box, factor)
        x0, y0, x1, y1 = self._area
        inside = x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1
        if factor != self._factor or not inside:
            return self._source.block(0, box, factor)
        left, top, right, bottom = ((edge - start) // factor for edge, start in zip(box, (x0, y0, x0, y0), strict=True))
        return self._averaged.crop((left, top, right, bottom))

    def close(self) -> None:
        """Let go of the image; what is averaged stays."""
        self._source.close()


def whole_blocks(box: Box | tuple[float, float, float, float], factor: int) -> Box:
    """Extend a box to whole blocks of the grid that begins at the origin."""
    x0, y0 = (math.floor(edge / factor) * factor for edge in box[:2])
    x1, y1 = (math.ceil(edge / factor) * factor for edge in box[2:])
    return x0, y0, x1, y1
