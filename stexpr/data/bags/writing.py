"""Writing a bag: whole or not at all, some patches at a time."""

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import h5py
import numpy as np
from jaxtyping import Float, Shaped, UInt8

from stexpr.config.files import write_whole
from stexpr.data.bags.bag import FEATURES, Bag
from stexpr.data.bags.files import COLOR, COORDS, EXPRESSION, GENES, PATCHES, check_finite
from stexpr.data.bags.layouts import FORMAT, FORMAT_KEY, read_bag
from stexpr.errors import DataError

__all__ = ["BagRows", "write_bag"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_STORED_ROWS: Final = 256
_HALVES: Final = (FEATURES, EXPRESSION, COLOR)


class BagRows(NamedTuple):
    """What is known of some patches of a slide.

    Attributes:
        features: Of the encoder.
        coords: Top-left corners, x then y, level-0 pixels.
        expression: Predicted.
        color: What their colors alone say.
        patches: Their pixels, as the encoder saw them.
    """

    features: Float[Array, "_ _"]
    coords: Shaped[Array, "_ 2"]
    expression: Float[Array, "_ _"] | None = None
    color: Float[Array, "_ _"] | None = None
    patches: UInt8[Array, "_ _ _ 3"] | None = None


def write_bag(
    path: Path,
    chunks: Iterable[tuple[Any, ...]],
    *,
    mpp: float,
    patch_px: int,
    side: float,
    encoder: str,
    genes: Sequence[str] = (),
    level0_mpp: float | None = None,
    size_px: tuple[int, int] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Bag:
    """Write a bag, whole or not at all, as its patches are embedded.

    Args:
        path: The file; its name without `.h5` is the slide's.
        chunks: `BagRows` of some patches at a time, or their first fields; `[(features, coords)]` for all.
        mpp: Microns per pixel at which the encoder saw the patches.
        patch_px: Their side as the encoder saw it.
        side: Their side in level-0 pixels.
        encoder: Hash of the encoder.
        genes: Of the expression, in its order.
        level0_mpp: Microns per level-0 pixel.
        size_px: Width and height of the slide, level-0 px.
        provenance: How the bag was made, plain JSON values.

    Raises:
        DataError: There are no patches, values are not finite in half precision, chunks differ in width or in what they hold,
            genes do not go with the expression, or the disk refuses.
    """
    slide = path.name.removesuffix(".h5")
    if path.suffix != ".h5":
        raise DataError(f"a bag is a .h5 file, not {path.name}; rename it")
    attributes: dict[str, Any] = {"mpp": mpp, "patch_px": patch_px, "side": side, "encoder": encoder}
    if level0_mpp is not None:
        attributes["level0_mpp"] = level0_mpp
    if size_px is not None:
        attributes |= {"width_px": size_px[0], "height_px": size_px[1]}
    if provenance is not None:
        attributes["provenance"] = json.dumps(provenance, allow_nan=False)
    rows = (BagRows(*chunk) for chunk in chunks)
    write_whole(path, functools.partial(_write, slide=slide, chunks=rows, genes=tuple(genes), attributes=attributes))
    return read_bag(path)


def _write(part: Path, *, slide: str, chunks: Iterable[BagRows], genes: tuple[str, ...], attributes: Mapping[str, Any]) -> None:
    with h5py.File(part, "w") as file:
        file.attrs.update({FORMAT_KEY: FORMAT, **attributes})
        digests: dict[str, Any] = {}
        n = 0
        for chunk in chunks:
            arrays = _checked(chunk, slide, n)
            if n == 0:
                _check_genes(arrays, genes, slide)
                digests = {key: _growing(file, key, values) for key, values in arrays.items()}
                if genes:
                    file.create_dataset(GENES, data=list(genes), dtype=h5py.string_dtype())
            _check_alike(file, digests, arrays, slide)
            for key, rows in arrays.items():
                file[key].resize(n + len(rows), axis=0)
                file[key][n:] = rows
                digests[key].update(np.ascontiguousarray(rows))
            n += len(chunk.coords)
        if n == 0:
            raise DataError(f"slide {slide} has no patches to write: no tissue was found")
        parts = [f"{key} {file[key].shape} {digests[key].hexdigest()}" for key in sorted(digests)]
        file.attrs["content"] = hashlib.sha256("\n".join([*parts, *genes]).encode()).hexdigest()[:16]


def _checked(chunk: BagRows, slide: str, start: int) -> dict[str, Array]:
    """Return the arrays of a chunk as they are stored."""
    features, coords = chunk.features, chunk.coords
    if features.ndim != 2 or coords.shape != (len(features), 2):
        raise DataError(f"slide {slide}: {features.shape} features do not go with {coords.shape} coordinates")
    if coords.dtype.kind not in "iu":
        raise DataError(f"slide {slide}: coordinates are {coords.dtype}, but level-0 pixels are whole numbers; round them")
    stored = {COORDS: coords.astype("<i8")}
    for key, values in zip(_HALVES, (features, chunk.expression, chunk.color), strict=True):
        if values is None:
            continue
        with np.errstate(over="ignore"):  # the check names the slide
            stored[key] = values.astype("<f2")
        check_finite(stored[key], slide, start, key)
    if chunk.patches is not None:
        stored[PATCHES] = chunk.patches
    for key, values in stored.items():
        if len(values) != len(coords):
            raise DataError(f"slide {slide}: {key} of {len(values)} patches does not go with {len(coords)} coordinates")
    return stored


def _check_genes(arrays: Mapping[str, Array], genes: tuple[str, ...], slide: str) -> None:
    n_values = arrays[EXPRESSION].shape[1] if EXPRESSION in arrays else 0
    if len(genes) != n_values or len(set(genes)) != len(genes):
        raise DataError(f"slide {slide}: {len(set(genes))} different genes are named for expression of {n_values}")


def _check_alike(file: h5py.File, keys: Iterable[str], arrays: Mapping[str, Array], slide: str) -> None:
    if set(keys) != set(arrays):
        raise DataError(f"slide {slide}: patches have {', '.join(sorted(keys))} at first and {', '.join(sorted(arrays))} later")
    for key, rows in arrays.items():
        if file[key].shape[1:] != rows.shape[1:]:
            first, later = ("x".join(map(str, shape[1:])) for shape in (file[key].shape, rows.shape))
            raise DataError(f"slide {slide}: patches have {first} {key} at first and {later} later")


def _growing(file: h5py.File, key: str, first: Array) -> Any:
    """Make an array that grows by rows, and what hashes it."""
    shape = first.shape[1:]
    stored: dict[str, Any] = {"chunks": (_STORED_ROWS, *shape)}
    if key == PATCHES:
        stored = {"chunks": (1, *shape), "compression": "gzip", "compression_opts": 1}
    file.create_dataset(key, shape=(0, *shape), maxshape=(None, *shape), dtype=first.dtype, **stored)
    return hashlib.sha256()
