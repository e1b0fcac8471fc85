"""Writing one section in the HEST-1k layout."""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeAlias

import h5py
import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, UInt8

from stexpr.config.files import write_whole
from stexpr.types import SPATIAL

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_BLOCK_BYTES: Final = 1_000_000
"""Patches written at a time: HDF5 takes longer to begin than to write one."""


def on_axis(counts: sp.csr_matrix, names: Iterable[str], genes: Iterable[str]) -> sp.csr_matrix:
    """Bring counts to a gene axis: genes off the axis are left out, genes the file lacks get 0."""
    axis = {gene: i for i, gene in enumerate(genes)}
    place = np.array([axis.get(name, -1) for name in names], dtype=np.int64)
    known = sp.csr_matrix(counts)[:, np.flatnonzero(place >= 0)]
    columns = place[place >= 0][known.indices].astype(np.int32)
    moved = sp.csr_matrix((known.data.astype(np.float32), columns, known.indptr), shape=(known.shape[0], len(axis)))
    moved.eliminate_zeros()
    moved.sort_indices()
    return moved


def write_spots(path: Path, spots: Any, thumbnail: UInt8[Array, "H W 3"], *, scale: float, spot_px: float | None) -> None:
    """Write `st/<section>.h5ad`.

    Args:
        path: The file.
        spots: AnnData with raw counts and `obsm["spatial"]`.
        thumbnail: The slide, small.
        scale: Thumbnail pixels per level-0 pixel.
        spot_px: Diameter of a spot in level-0 px, where it is known; scanpy draws spots at that size.
    """
    picture = picture_entry(thumbnail, scale=scale, spot_px=spot_px)
    spots.uns[SPATIAL] = {**spots.uns.get(SPATIAL, {}), "ST": picture}
    write_anndata(path, spots, more_bytes=thumbnail.nbytes)


def picture_entry(thumbnail: UInt8[Array, "H W 3"], *, scale: float, spot_px: float | None) -> dict[str, Any]:
    """Return the entry of `uns["spatial"]` in which scanpy and squidpy look for the picture behind spots; see `write_spots`."""
    factors = {"tissue_downscaled_fullres_scalef": scale}
    if spot_px is not None:
        factors["spot_diameter_fullres"] = spot_px
    return {"images": {"downscaled_fullres": thumbnail}, "scalefactors": factors}


def write_anndata(path: Path, spots: Any, *, more_bytes: int = 0) -> None:
    """Write AnnData as it is: text columns stay text, which would otherwise come back as categories.

    Args:
        path: The file.
        spots: What to write.
        more_bytes: What it holds beside `X`, uncompressed.
    """
    counts = spots.X
    needs = more_bytes + (counts.data.nbytes + counts.indices.nbytes if sp.issparse(counts) else counts.nbytes)
    write_whole(
        path,
        lambda part: spots.write_h5ad(part, compression="gzip", convert_strings_to_categoricals=False),
        needs=needs,  # before compression
    )


def write_patches(
    path: Path,
    patches: Iterable[UInt8[Array, "H W 3"]],
    corners: Float64[Array, "S 2"],
    barcodes: list[str],
    *,
    window_px: int,
    side: float,
) -> str:
    """Write `patches/<section>.h5`, a few patches at a time.

    Args:
        path: The file.
        patches: As many as there are corners.
        corners: Top-left corners, x then y, whole level-0 px.
        barcodes: One per patch.
        window_px: Side of a patch.
        side: Side of a patch on the slide, level-0 px.

    Returns:
        SHA-256 of the pixels.
    """
    digest = hashlib.sha256()
    at_a_time = max(1, _BLOCK_BYTES // (window_px**2 * 3))

    def write(part: Path) -> None:
        with h5py.File(part, "w") as file:
            # Contiguous: see store.py for what that gains in reading.
            images = file.create_dataset("img", shape=(len(barcodes), window_px, window_px, 3), dtype=np.uint8)
            images.attrs["patch_size"] = window_px
            stream, done = iter(patches), 0
            while some := list(islice(stream, at_a_time)):
                block = np.stack(some)
                images[done : done + len(block)] = block
                digest.update(block.data)
                done += len(block)
            file["coords"] = corners.astype(np.int64)
            file["coords"].attrs["patch_size"] = window_px
            file["coords"].attrs["patch_size_level0"] = side
            # HEST keeps barcodes as bytes of one length, one to a row.
            file["barcode"] = np.array([barcode.encode() for barcode in barcodes])[:, None]

    write_whole(path, write, needs=len(barcodes) * window_px**2 * 3)
    return digest.hexdigest()


def write_metadata(path: Path, values: dict[str, Any]) -> None:
    """Write `metadata/<section>.json`."""
    text = json.dumps(values, indent=1, ensure_ascii=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def write_picture(path: Path, picture: UInt8[Array, "H W 3"]) -> None:
    """Write `qc/<section>.png`, packed lightly: a fifth of the time of Pillow's default, and an eighth larger."""
    import imagecodecs

    light = {"level": 1, "strategy": imagecodecs.PNG.STRATEGY.RLE, "filter": imagecodecs.PNG.FILTER.SUB}
    write_whole(path, lambda part: part.write_bytes(imagecodecs.png_encode(picture, **light)))
