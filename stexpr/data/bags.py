"""Bags on disk: the features of the patches of a slide, one HDF5 file per slide.

Ours hold `features` (patches x features, half precision), `coords` (top-left corners, level-0 pixels) and attributes for
microns per pixel, patch size and encoder. Files of TRIDENT, CLAM (`features`) and STAMP (`feats`) are read as they are. A
header says how large a bag is before any of it is read, and features come in rows, so that 200,000 patches need not be in
memory.
"""

import functools
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

import h5py
import numpy as np
from jaxtyping import Float, Float64, Shaped

from stexpr.config.files import write_whole
from stexpr.errors import DataError

__all__ = ["Bag", "read_bag", "write_bag"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Layout: TypeAlias = Literal["stexpr", "trident", "clam", "stamp"]

FORMAT: Final = 1
_FORMAT_KEY: Final = "stexpr_bag"
_ROWS: Final = 4096
_STORED_ROWS: Final = 256


@dataclass(frozen=True)
class Bag:
    """One slide's features, read only when asked for.

    Attributes:
        slide: Name of the slide, the file's name without `.h5`.
        path: The file.
        layout: Who wrote it.
        n: Patches, at least 1.
        width: Features of each.
        unit: Unit of the coordinates: level-0 pixels, or microns in STAMP's files.
        side: Side of a patch in that unit; None where the file does not say.
        mpp: Microns per pixel at which the encoder saw the patches; None where the file does not say.
        patch_px: Side of the patches that the encoder saw; None where the file does not say.
        encoder: Name or hash of the encoder; None where the file does not say.
    """

    slide: str
    path: Path
    layout: Layout
    n: int
    width: int
    unit: Literal["px", "um"] = "px"
    side: float | None = None
    mpp: float | None = None
    patch_px: int | None = None
    encoder: str | None = None

    def chunks(self, rows: int = _ROWS) -> Iterator[Float[Array, "N D"]]:
        """Read the features in order, at most `rows` patches at a time, in the precision of the file.

        Raises:
            DataError: Features are not finite, or the file was replaced by one of another size.
        """
        if rows < 1:
            raise DataError(f"chunks of {rows} rows cannot be read; give at least 1")
        with _open(self.path, self.slide) as file:
            features = _dataset(file, _feature_key(file, self.slide), self.slide)
            if features.shape != (self.n, self.width):
                raise DataError(f"the bag of slide {self.slide} ({self.path}) changed while it was used; open the store again")
            for start in range(0, self.n, rows):
                chunk = features[start : start + rows]
                _check_finite(chunk, self.slide, start)
                yield chunk

    def features(self) -> Float[Array, "N D"]:
        """Read all features, in the precision of the file.

        Raises:
            DataError: As `chunks`.
        """
        return np.concatenate(list(self.chunks()))

    def coords(self) -> Float64[Array, "N 2"]:
        """Read the top-left corner of each patch, x then y, in `unit`.

        Raises:
            DataError: They are not finite.
        """
        with _open(self.path, self.slide) as file:
            coords = np.asarray(_dataset(file, "coords", self.slide)[:], dtype=np.float64)
        _check_finite(coords, self.slide, 0)
        return coords


def read_bag(path: str | Path) -> Bag:
    """Read the header of a bag.

    Raises:
        DataError: The file is missing, no HDF5 file, holds no features and coordinates of one length, is empty, refers to
            other files, or was written by a newer stexpr.
    """
    path = Path(path)
    slide = path.name.removesuffix(".h5")
    with _open(path, slide) as file:
        key = _feature_key(file, slide)
        features, coords = _dataset(file, key, slide), _dataset(file, "coords", slide)
        if features.ndim != 2 or features.dtype.kind != "f":
            raise DataError(
                f"slide {slide}: {key} in {path} is {features.dtype} of shape {features.shape}; it must be floating "
                "point, patches x features"
            )
        if features.shape[0] == 0 or features.shape[1] == 0:
            raise DataError(
                f"the bag of slide {slide} is empty ({path}): no tissue was found; remove the file or embed it again"
            )
        if coords.shape != (features.shape[0], 2):
            raise DataError(f"slide {slide}: coords in {path} have shape {coords.shape}, expected {(features.shape[0], 2)}")
        try:
            return _header(path, slide, file, features, coords)
        except (TypeError, ValueError, OverflowError) as err:
            raise DataError(f"slide {slide}: an attribute of {path} is no number ({err}); embed the slide again") from err


def write_bag(
    path: Path,
    chunks: Iterable[tuple[Float[Array, "_ _"], Shaped[Array, "_ 2"]]],
    *,
    mpp: float,
    patch_px: int,
    side: float,
    encoder: str,
) -> Bag:
    """Write a bag, whole or not at all, as its patches are embedded.

    Args:
        path: The file; its name without `.h5` is the slide's.
        chunks: Features and top-left corners (x, y, level-0 pixels) of some patches at a time; `[(features, coords)]` for all.
        mpp: Microns per pixel at which the encoder saw the patches.
        patch_px: Their side as the encoder saw it.
        side: Their side in level-0 pixels.
        encoder: Hash of the encoder.

    Raises:
        DataError: There are no patches, features are not finite in half precision, chunks differ in width, or the disk refuses.
    """
    slide = path.name.removesuffix(".h5")
    if path.suffix != ".h5":
        raise DataError(f"a bag is a .h5 file, not {path.name}; rename it")
    write_whole(
        path, functools.partial(_write, slide=slide, chunks=chunks, mpp=mpp, patch_px=patch_px, side=side, encoder=encoder)
    )
    return read_bag(path)


def _write(part: Path, *, slide: str, chunks: Iterable[tuple[Array, Array]], **attributes: int | float | str) -> None:
    with h5py.File(part, "w") as file:
        file.attrs.update({_FORMAT_KEY: FORMAT, **attributes})
        n = 0
        for features, coords in chunks:
            if features.ndim != 2 or coords.shape != (len(features), 2):
                raise DataError(f"slide {slide}: {features.shape} features do not go with {coords.shape} coordinates")
            if coords.dtype.kind not in "iu":
                raise DataError(
                    f"slide {slide}: coordinates are {coords.dtype}, but level-0 pixels are whole numbers; round them"
                )
            if n == 0:
                width = features.shape[1]
                _growing(file, "features", np.float16, width)
                _growing(file, "coords", np.int64, 2)
            elif features.shape[1] != width:
                raise DataError(f"slide {slide}: patches have {width} features at first and {features.shape[1]} later")
            with np.errstate(over="ignore"):  # the check below names the slide
                half = features.astype(np.float16)
            _check_finite(half, slide, n)
            for key, rows in (("features", half), ("coords", coords)):
                file[key].resize(n + len(rows), axis=0)
                file[key][n:] = rows
            n += len(half)
        if n == 0:
            raise DataError(f"slide {slide} has no patches to write: no tissue was found")


def _growing(file: h5py.File, key: str, dtype: type[np.generic], width: int) -> None:
    file.create_dataset(key, shape=(0, width), maxshape=(None, width), chunks=(_STORED_ROWS, width), dtype=dtype)


def _header(path: Path, slide: str, file: h5py.File, features: h5py.Dataset, coords: h5py.Dataset) -> Bag:
    n, width = features.shape
    own, at = file.attrs, coords.attrs
    if _FORMAT_KEY in own:
        if int(own[_FORMAT_KEY]) != FORMAT:
            raise DataError(f"{path} has format {own[_FORMAT_KEY]}; this version of stexpr reads format {FORMAT}")
        return Bag(
            slide,
            path,
            "stexpr",
            n,
            width,
            side=_positive(own.get("side")),
            mpp=_positive(own.get("mpp")),
            patch_px=_whole(own.get("patch_px")),
            encoder=_text(own.get("encoder")),
        )
    if features.name == "/feats":
        um, px = _positive(own.get("tile_size_um", own.get("tile_size"))), _whole(own.get("tile_size_px"))
        in_um = _text(own.get("unit")) == "um"
        mpp = um / px if um is not None and px is not None else None
        encoder = _text(own.get("extractor"))
        return Bag(slide, path, "stamp", n, width, "um" if in_um else "px", um if in_um else None, mpp, px, encoder)
    if "patch_size_level0" in at:
        side, encoder = _positive(at["patch_size_level0"]), _text(features.attrs.get("encoder"))
        return Bag(slide, path, "trident", n, width, side=side, patch_px=_whole(at.get("patch_size")), encoder=encoder)
    return Bag(slide, path, "clam", n, width)


def _feature_key(file: h5py.File, slide: str) -> str:
    for key in ("features", "feats"):
        if key in file:
            return key
    raise DataError(
        f"slide {slide}: {file.filename} holds no features; expected features (stexpr, TRIDENT, CLAM) or feats (STAMP), found: "
        f"{', '.join(file) or 'nothing'}"
    )


def _dataset(file: h5py.File, key: str, slide: str) -> h5py.Dataset:
    link = file.get(key, getlink=True)
    dataset = file[key] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        held = "missing" if link is None else "no array of this file"
        raise DataError(f"slide {slide}: {key} in {file.filename} is {held}; embed the slide again")
    return dataset


@contextmanager
def _open(path: Path, slide: str) -> Iterator[h5py.File]:
    try:
        file = h5py.File(path, "r")
    except OSError as err:
        raise DataError(f"slide {slide}: cannot read {path} as HDF5 ({err}); embed the slide again") from err
    with file:
        try:
            yield file
        except OSError as err:
            raise DataError(f"slide {slide}: {path} is damaged ({err}); embed the slide again") from err


def _check_finite(values: Shaped[Array, "N _"], slide: str, start: int) -> None:
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        raise DataError(
            f"slide {slide} has features or coordinates that are not finite numbers in {int((~finite).sum())} of patches "
            f"{start} to {start + len(values) - 1}, first in patch {start + int(np.argmin(finite))}; embed the slide again"
        )


def _text(value: Any) -> str | None:
    return None if value is None else value.decode() if isinstance(value, bytes) else str(value)


def _positive(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and np.isfinite(number) and number > 0 else None


def _whole(value: Any) -> int | None:
    number = _positive(value)
    return None if number is None else round(number)
