"""Patches of one section, read from their file one at a time or all at once."""

import os
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

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
    Where patches lie contiguous in the file, the rows wanted are read from their place, faster than through HDF5's selections.
    A memory map is no faster when a patch is read once, and all that was read counts as this process's memory.
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
        self._opened: _Opened | None = None

    def __len__(self) -> int:
        return self._shape[0] if self._rows is None else len(self._rows)

    def __getitem__(self, i: int) -> UInt8[Array, "H W 3"]:
        n, px = self._shape[:2]
        row = range(n)[i if self._rows is None else int(self._rows[i])]
        patch = self._read(row, px)
        return patch if self._colors is None else recolored(patch, self._colors)

    def all(self) -> UInt8[Array, "S H W 3"]:
        """Read every patch."""
        patches: Array = self._open().images[:, self._crop, self._crop]
        if self._rows is not None:
            patches = patches[self._rows]
        return patches if self._colors is None else recolored(patches, self._colors)

    def _read(self, row: int, px: int) -> UInt8[Array, "H W 3"]:
        # Reading from a place is safe across a fork.
        opened = self._opened if self._opened is not None and self._opened.offset is not None else self._open()
        if opened.offset is None:
            patch: Array = opened.images[row, self._crop, self._crop]
            return patch
        rows = np.empty((self.window_px, px, 3), dtype=np.uint8)
        if os.preadv(opened.handle, [rows.data], opened.offset + (row * px + self._crop.start) * px * 3) != rows.nbytes:
            raise DataError(f"{self.path} ends within patch {row}; {AGAIN}")
        return rows if self.window_px == px else rows[:, self._crop].copy()

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._opened is not None and self._opened.process == os.getpid():
            self._opened.file.close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _open(self) -> "_Opened":
        if self._opened is None or self._opened.process != os.getpid():
            file = open_h5(self.path)
            images = file.get("img")
            if images is None or images.shape != self._shape or images.dtype != np.uint8:
                held = "no img" if images is None else f"img {images.dtype} {images.shape}"
                file.close()
                raise DataError(f"{self.path} holds {held}, the manifest says uint8 {self._shape}; {AGAIN}")
            placed = hasattr(os, "preadv") and file.driver == "sec2"
            handle = file.id.get_vfd_handle() if placed else -1
            self._opened = _Opened(os.getpid(), file, images, handle, images.id.get_offset() if placed else None)
        return self._opened


class _Opened(NamedTuple):
    """An open file: which process opened it, its patches, and where they begin if they lie contiguous."""

    process: int
    file: h5py.File
    images: Any
    handle: int
    offset: int | None
