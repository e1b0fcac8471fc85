"""A whole slide of any size in seconds: a tiled, pyramidal, compressed TIFF in which a few tiles are repeated.

The file holds each different tile once; the places of the pyramid point at it. So a slide of 40,000 x 40,000 px takes some
hundred kilobytes, while a reader has as much to decode as in a real one.
"""

import io
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from stexpr.config.files import write_whole
from stexpr.errors import ConfigError

__all__ = ["BLOCK_PX", "write_large_slide"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

BLOCK_PX = 4096
"""Tissue comes in blocks of this side, which are whole tiles at every level."""
_TILE_PX = 256
_DOWNSAMPLES = (1, 4, 16)
_VARIANTS = 16
_TISSUE, _GLASS = (176, 118, 168), (244, 242, 245)


def write_large_slide(
    path: Path, *, width: int, height: int, n_blocks: int, mpp: float | None = 0.5, levels: bool = True, seed: int = 0
) -> float:
    """Write a slide with tissue in some blocks, the first of them at the top left, row by row.

    Args:
        path: The `.tif`.
        width: px.
        height: px.
        n_blocks: Blocks of tissue, each `BLOCK_PX` wide.
        mpp: Microns per pixel said in the file, None to say nothing.
        levels: Whether it is a pyramid, with levels of 1/4 and 1/16.
        seed: Of the texture.

    Returns:
        Area of the tissue, square mm at that scale (at 1 um/px without).

    Raises:
        ConfigError: So many blocks do not fit whole.
        DataError: The folder cannot be written.
    """
    import tifffile

    blocks = np.zeros((-(-height // BLOCK_PX), -(-width // BLOCK_PX)), dtype=bool)
    whole = blocks[: height // BLOCK_PX, : width // BLOCK_PX]
    if not 0 <= n_blocks <= whole.size:
        raise ConfigError(f"{n_blocks} blocks of tissue do not fit: {whole.size} whole blocks of {BLOCK_PX} px do")
    whole.flat[:n_blocks] = True
    downsamples = _DOWNSAMPLES if levels else _DOWNSAMPLES[:1]
    resolution: dict[str, Any] = {} if mpp is None else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    shapes = [(-(-height // down), -(-width // down)) for down in downsamples]

    def write(part: Path) -> None:
        with tifffile.TiffWriter(part, bigtiff=True) as file:
            for i, shape in enumerate(shapes):
                file.write(
                    (b"" for _ in range(-(-shape[0] // _TILE_PX) * -(-shape[1] // _TILE_PX))),
                    shape=(*shape, 3),
                    dtype=np.uint8,
                    tile=(_TILE_PX, _TILE_PX),
                    photometric="ycbcr",
                    subsampling=(2, 2),
                    compression="jpeg",
                    subfiletype=1 if i else 0,
                    metadata=None,
                    **resolution,
                )
        _point_at_tiles(part, blocks, downsamples, np.random.default_rng(seed))

    write_whole(path, write)
    return n_blocks * (BLOCK_PX * (mpp or 1.0) / 1000) ** 2


def _point_at_tiles(path: Path, blocks: Bool[Array, "rows columns"], downsamples: tuple[int, ...], rng: Any) -> None:
    """Append the different tiles to the file and let every place of every level point at one of them."""
    import tifffile

    with tifffile.TiffFile(path, mode="r+") as file:
        pages: list[Any] = list(file.pages)
        for page, down in zip(pages, downsamples, strict=True):
            rows, columns = -(-page.imagelength // _TILE_PX), -(-page.imagewidth // _TILE_PX)
            per_block = BLOCK_PX // (_TILE_PX * down)
            tissue = blocks.repeat(per_block, axis=0).repeat(per_block, axis=1)[:rows, :columns]
            chosen = np.where(tissue, rng.integers(0, _VARIANTS, tissue.shape), _VARIANTS)
            encoded = [
                *(_jpeg(_texture(rng)) for _ in range(_VARIANTS)),
                _jpeg(np.full((_TILE_PX, _TILE_PX, 3), _GLASS, np.uint8)),
            ]
            file.filehandle.seek(0, io.SEEK_END)
            starts = []
            for content in encoded:
                starts.append(file.filehandle.tell())
                file.filehandle.write(content)
            page.tags["TileOffsets"].overwrite([starts[i] for i in chosen.flat], dtype="Q")
            page.tags["TileByteCounts"].overwrite([len(encoded[i]) for i in chosen.flat], dtype="Q")


def _texture(rng: Any) -> UInt8[Array, "H W 3"]:
    """Draw a tile of stained tissue with nuclei."""
    y, x = np.mgrid[:_TILE_PX, :_TILE_PX]
    shade = rng.normal(0, 12, (_TILE_PX, _TILE_PX))
    for cx, cy in rng.uniform(0, _TILE_PX, (60, 2)):
        shade -= 70 * (((x - cx) ** 2 + (y - cy) ** 2) < 49)
    texture: Array = np.clip(np.array(_TISSUE) + shade[..., None], 0, 255).astype(np.uint8)
    return texture


def _jpeg(tile: UInt8[Array, "H W 3"]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, format="JPEG", quality=80, subsampling="4:2:0")
    return buffer.getvalue()
