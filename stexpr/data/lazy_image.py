"""Images between files and arrays, read only where they are asked for: a slide as an array, an array in a store as a slide."""

import threading
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from stexpr.data.images import SlideImage
from stexpr.data.rasters import Box, as_rgb

__all__ = ["StoredRaster", "is_rgb", "lazy_pixels"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


CHUNK: Final = 1024


def lazy_pixels(image: SlideImage) -> Any:
    """Return an image as a dask array, channels first, whose chunks are read when they are computed, one at a time."""
    import dask.array as da

    shape = (3, CHUNK, CHUNK)
    return da.from_array(_Pixels(image), chunks=shape, name=False, lock=True, meta=np.empty((0, 0, 0), np.uint8))  # type: ignore[no-untyped-call]


class _Pixels:
    """An image as an array, channels first, read where it is sliced."""

    dtype, ndim = np.dtype(np.uint8), 3

    def __init__(self, image: SlideImage) -> None:
        self._image = image
        self.shape = (3, image.height, image.width)

    def __getitem__(self, key: tuple[slice, slice, slice]) -> UInt8[Array, "C H W"]:
        channels, rows, columns = key
        (top, bottom, _), (left, right, _) = rows.indices(self.shape[1]), columns.indices(self.shape[2])
        side = max(bottom - top, right - left)
        block = self._image.read(left, top, side, side)[: bottom - top, : right - left]
        return np.ascontiguousarray(np.moveaxis(block, 2, 0)[channels, :: rows.step or 1, :: columns.step or 1])


class StoredRaster:
    """The levels of an RGB image of a store, as `SlideImage` reads them."""

    backend = "spatialdata"

    def __init__(self, picture: Any, name: str, mpp: float | None) -> None:
        self.mpp = mpp
        self._name = name
        self._levels = _levels(picture)
        self._lock = threading.Lock()
        self.sizes: tuple[tuple[int, int], ...] = tuple((level.sizes["x"], level.sizes["y"]) for level in self._levels)

    def region(self, level: int, box: Box, factor: int = 1) -> Image.Image:
        """Return the pixels of `box`."""
        x0, y0, x1, y1 = box
        with self._lock:
            block = self._levels[level].transpose("y", "x", "c").data[y0:y1, x0:x1].compute()
        return as_rgb(Image.fromarray(np.ascontiguousarray(block)), Path(self._name)).reduce(factor)

    def close(self) -> None:
        """Nothing to let go of: a store opens its chunks one by one."""


def is_rgb(picture: Any) -> bool:
    """Whether an image has three channels of eight bits, or four with transparency."""
    first = _levels(picture)[0]
    return bool(first.dtype == np.uint8 and first.sizes["c"] in (3, 4))


def _levels(picture: Any) -> list[Any]:
    from xarray import DataTree

    if not isinstance(picture, DataTree):
        return [picture]
    return [next(iter(level.ds.data_vars.values())) for level in picture.children.values()]
