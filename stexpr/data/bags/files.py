"""HDF5 files of bags, opened with care: no other file is read through them, and what is damaged names its slide."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeAlias

import h5py
import numpy as np
from jaxtyping import Shaped

from stexpr.errors import DataError

__all__ = [
    "COLOR",
    "COORDS",
    "EXPRESSION",
    "FEATURE_KEYS",
    "GENES",
    "PATCHES",
    "check_finite",
    "dataset_of",
    "feature_key",
    "open_bag",
]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_EXPONENT: Final = 0x7C00
"""Bits of the exponent in half precision; all are set in what is not finite."""
_CHECKED: Final = 256
FEATURE_KEYS: Final = ("features", "feats")
"""What stexpr, TRIDENT and CLAM call the features, and what STAMP does."""
COORDS: Final = "coords"
EXPRESSION: Final = "expression"
GENES: Final = "genes"
COLOR: Final = "color"
PATCHES: Final = "patches"


@contextmanager
def open_bag(path: Path, slide: str) -> Iterator[h5py.File]:
    """Open the file of a slide for reading.

    Raises:
        DataError: It is missing, no HDF5 file, or damaged where it is read inside the block.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as err:
        raise DataError(f"slide {slide}: cannot read {path} as HDF5 ({err}); embed the slide again") from err
    with file:
        try:
            yield file
        except OSError as err:
            raise DataError(f"slide {slide}: {path} is damaged ({err}); embed the slide again") from err


def feature_key(file: h5py.File, slide: str) -> str:
    """Return what a file calls its features.

    Raises:
        DataError: It holds none.
    """
    for key in FEATURE_KEYS:
        if key in file:
            return key
    raise DataError(
        f"slide {slide}: {file.filename} holds no features; expected features (stexpr, TRIDENT, CLAM) or feats (STAMP), found: "
        f"{', '.join(file) or 'nothing'}"
    )


def dataset_of(file: h5py.File, key: str, slide: str) -> h5py.Dataset:
    """Return an array of the file itself.

    Raises:
        DataError: There is none, or it lies in another file.
    """
    link = file.get(key, getlink=True)
    dataset = file[key] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        held = "missing" if link is None else "no array of this file"
        raise DataError(f"slide {slide}: {key} in {file.filename} is {held}; embed the slide again")
    return dataset


def check_finite(values: Shaped[Array, "N _"], slide: str, start: int, what: str = "features") -> None:
    """Refuse rows with values that are not finite.

    Args:
        values: Some rows.
        slide: Whose they are.
        start: The patch the first row is of.
        what: What they are.

    Raises:
        DataError: There is one; the first is named.
    """
    if not _all_finite(values):
        finite = np.isfinite(values).all(axis=1)
        raise DataError(
            f"slide {slide} has {what} that are not finite numbers in {int((~finite).sum())} of patches "
            f"{start} to {start + len(values) - 1}, first in patch {start + int(np.argmin(finite))}; embed the slide again"
        )


def _all_finite(values: Shaped[Array, "N _"]) -> bool:
    if values.dtype != np.float16:
        return bool(np.isfinite(values).all())
    # twenty times as fast as NumPy, which widens half precision one by one; some rows at a time, which stay in the cache
    bits = values.view(np.uint16)
    parts = (bits[start : start + _CHECKED] & _EXPONENT for start in range(0, len(bits), _CHECKED))
    return all(int(part.max(initial=0)) < _EXPONENT for part in parts)
