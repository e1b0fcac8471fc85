"""The header of a bag, whoever wrote the file: stexpr, TRIDENT, CLAM or STAMP."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np

from stexpr.data.bags.bag import Bag
from stexpr.data.bags.files import COLOR, COORDS, EXPRESSION, GENES, PATCHES, dataset_of, feature_key, open_bag
from stexpr.errors import DataError

__all__ = ["FORMAT", "FORMAT_KEY", "read_bag"]

FORMAT: Final = 1
"""Arrays beside features and coordinates came later; a file without them is read as one that was written without them."""
FORMAT_KEY: Final = "stexpr_bag"


def read_bag(path: str | Path) -> Bag:
    """Read the header of a bag.

    Raises:
        DataError: The file is missing, no HDF5 file, holds no features and coordinates of one length, is empty, refers to
            other files, or was written by a newer stexpr.
    """
    path = Path(path)
    slide = path.name.removesuffix(".h5")
    with open_bag(path, slide) as file:
        key = feature_key(file, slide)
        features, coords = dataset_of(file, key, slide), dataset_of(file, COORDS, slide)
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
            if isinstance(err, DataError):
                raise
            raise DataError(f"slide {slide}: an attribute of {path} cannot be read ({err}); embed the slide again") from err


def _header(path: Path, slide: str, file: h5py.File, features: h5py.Dataset, coords: h5py.Dataset) -> Bag:
    n, width = features.shape
    own, at = file.attrs, coords.attrs
    if FORMAT_KEY in own:
        if int(own[FORMAT_KEY]) != FORMAT:
            raise DataError(f"{path} has format {own[FORMAT_KEY]}; this version of stexpr reads format {FORMAT}")
        return _own_header(path, slide, file, n, width)
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


def _own_header(path: Path, slide: str, file: h5py.File, n: int, width: int) -> Bag:
    own = file.attrs
    genes = tuple(dataset_of(file, GENES, slide).asstr()[:].tolist()) if EXPRESSION in file else ()
    beside = {key: dataset_of(file, key, slide).shape for key in (EXPRESSION, COLOR, PATCHES) if key in file}
    expected = {
        EXPRESSION: (n, len(genes)),
        COLOR: (n, *beside.get(COLOR, ())[1:2]),
        PATCHES: (n, *beside.get(PATCHES, ())[1:3], 3),
    }
    for key, shape in beside.items():
        if shape != expected[key] or not all(shape):
            raise DataError(
                f"slide {slide}: {key} in {path} has shape {shape}, expected {expected[key]}; embed the slide again"
            )
    size = _whole(own.get("width_px")), _whole(own.get("height_px"))
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
        genes=genes,
        n_color=beside.get(COLOR, (0, 0))[1],
        has_patches=PATCHES in beside,
        level0_mpp=_positive(own.get("level0_mpp")),
        size_px=None if size[0] is None or size[1] is None else (size[0], size[1]),
        content=_text(own.get("content")),
        provenance=_provenance(own),
    )


def _provenance(own: Mapping[str, Any]) -> dict[str, Any]:
    found = json.loads(_text(own.get("provenance")) or "{}")
    return found if isinstance(found, dict) else {}


def _text(value: Any) -> str | None:
    return None if value is None else value.decode() if isinstance(value, bytes) else str(value)


def _positive(value: Any) -> float | None:
    number = None if value is None else float(value)
    return number if number is not None and np.isfinite(number) and number > 0 else None


def _whole(value: Any) -> int | None:
    number = _positive(value)
    return None if number is None else round(number)
