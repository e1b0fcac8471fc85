"""Patches of one section, read from their file one at a time or all at once."""

import os
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
from jaxtyping import Int, UInt8

from stexpr.data.stain import recolored
from stexpr.data.stored import AGAIN, open_h5
from stexpr.errors import DataError

__all__ = ["PatchReader"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class PatchReader:
    """Patches of one section, read one at a time.

    Where a table of colors is given, every value of every channel is looked up in it.

    The file is opened on first use in each process: HDF5 handles must not cross a fork, and a pickled reader carries none.
    """

    def __init__(
        self,
        path: Path,
        n_spots: int,
        stored_px: int,
        window_px: int,
        *,
        rows: Int[Array, "S"] | None = None,
        colors: UInt8[Array, "256 3"] | None = None,
    ) -> None:
        self.path = path
        self.window_px = window_px
        self._rows = rows
        self._colors = colors
        self._shape = (n_spots, stored_px, stored_px, 3)
        start = (stored_px - window_px) // 2
        self._crop = slice(start, start + window_px)
        self._opened: tuple[int, h5py.File] | None = None

    def __len__(self) -> int:
        return self._shape[0] if self._rows is None else len(self._rows)

    def __getitem__(self, i: int) -> UInt8[Array, "H W 3"]:
        row = i if self._rows is None else int(self._rows[i])
        patch: Array = self._images()[row, self._crop, self._crop]
        return patch if self._colors is None else recolored(patch, self._colors)

    def all(self) -> UInt8[Array, "S H W 3"]:
        """Read every patch."""
        patches: Array = self._images()[:, self._crop, self._crop]
        if self._rows is not None:
            patches = patches[self._rows]
        return patches if self._colors is None else recolored(patches, self._colors)

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _images(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            file = open_h5(self.path)
            images = file.get("img")
            if images is None or images.shape != self._shape or images.dtype != np.uint8:
                held = "no img" if images is None else f"img {images.dtype} {images.shape}"
                file.close()
                raise DataError(f"{self.path} holds {held}, the manifest says uint8 {self._shape}; {AGAIN}")
            self._opened = (os.getpid(), file)
        return self._opened[1]["img"]
