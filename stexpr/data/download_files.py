"""The files of one section of a download, as they are: genes, spots, and what stands beside the pixels of the patches."""

import warnings
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import h5py
import numpy as np
from jaxtyping import Float64, Int64

from stexpr.data.stored import open_h5, text_rows
from stexpr.errors import DataError
from stexpr.types import SPATIAL

__all__ = ["PatchFile", "check_places", "read_gene_names", "read_patch_file", "read_spot_file"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_SOURCE_SIDE: Final = ("patch_size_src", "patch_size_level0")
_REDUCTION: Final = ("downsample", "factor")


class PatchFile(NamedTuple):
    """What a file of patches says beside the pixels.

    Attributes:
        barcodes: One per patch; not checked for repeats.
        corners: The file's `coords`, level-0 px, if it has them.
        px: Side of the patches.
        reduction: Level-0 pixels to a pixel of the patches, where the file says so.
    """

    barcodes: list[str]
    corners: Float64[Array, "N 2"] | None
    px: int
    reduction: float | None


def read_gene_names(path: Path) -> list[str]:
    """Read the genes of an AnnData file, and nothing else of it.

    Raises:
        DataError: It is no such file.
    """
    with open_h5(path) as file:
        try:
            return text_rows(file["var"])
        except (KeyError, TypeError, AttributeError) as err:
            raise DataError(f"{path} is not an AnnData file that can be read ({err!r}); download it again") from err


def read_spot_file(path: Path) -> Any:
    """Read the AnnData file of a section; names may stand in it twice.

    Raises:
        DataError: It cannot be read, or lacks counts or finite positions.
    """
    import anndata

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique", category=UserWarning)  # left out, and counted
        try:
            spots = anndata.read_h5ad(path)
        except Exception as err:  # anndata and h5py raise whatever their first failing line does
            raise DataError(f"cannot read {path} as AnnData: {' '.join(str(err).split())[:200]}") from err
    if spots.X is None or SPATIAL not in spots.obsm:
        raise DataError(f'{path} lacks X or obsm["spatial"]; HEST-1k keeps raw counts and spot centers there')
    if np.asarray(spots.obsm[SPATIAL]).ndim != 2 or not np.isfinite(np.asarray(spots.obsm[SPATIAL], dtype=float)).all():
        raise DataError(f'{path}: obsm["spatial"] is not two finite numbers for each spot; download it again')
    return spots


def read_patch_file(path: Path) -> PatchFile:
    """Read what stands beside the pixels of a file of patches.

    Raises:
        DataError: It holds no square RGB patches with a barcode each.
    """
    with open_h5(path) as file:
        images, key = file.get("img"), next((key for key in ("barcode", "barcodes") if key in file), None)
        if not isinstance(images, h5py.Dataset) or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise DataError(f"{path} holds {'no img' if images is None else images}; it needs img, uint8, patches x H x W x 3")
        if images.shape[1] != images.shape[2] or key is None or file[key].size != len(images):
            raise DataError(
                f"{path} holds {len(images)} patches of {images.shape[1]} x {images.shape[2]} px and "
                f"{0 if key is None else file[key].size} barcodes; it needs square patches, and a barcode for each"
            )
        barcodes = [value.decode() if isinstance(value, bytes) else str(value) for value in np.asarray(file[key]).ravel()]
        coords = file.get("coords")
        corners = None if coords is None or coords.shape != (len(images), 2) else np.asarray(coords[:], dtype=np.float64)
        said = {**dict(images.attrs), **({} if coords is None else dict(coords.attrs))}
        px = int(images.shape[1])
    for names, divisor in ((_SOURCE_SIDE, px), (_REDUCTION, 1)):
        for name in names:
            if np.ndim(said.get(name, "")) == 0 and isinstance(said.get(name), int | float | np.number) and said[name] > 0:
                return PatchFile(barcodes, corners, px, float(said[name]) / divisor)
    return PatchFile(barcodes, corners, px, None)


def check_places(
    section: str, centers: Float64[Array, "N 2"], patches: PatchFile, rows: Int64[Array, "N"], side: float
) -> None:
    """Refuse patches that do not lie around their spots; releases differ in whether `coords` are corners or centers.

    Args:
        section: Named in the error.
        centers: Spot centers, level-0 px, x then y.
        patches: The file of patches.
        rows: The patch of each spot.
        side: Side of a patch, level-0 px.

    Raises:
        DataError: Half of the patches or more do not cover the spot of their barcode.
    """
    if patches.corners is None:
        return
    places = patches.corners[rows]
    readings = [places[:, order] + shift for order in ([0, 1], [1, 0]) for shift in (side / 2, 0.0)]
    off = min(float(np.median(np.abs(reading - centers).max(axis=1))) for reading in readings)
    if off > side / 2:
        raise DataError(
            f"the patches of section {section} lie a median of {off:.0f} px off the spots of the same barcodes, farther than "
            f"half a patch ({side / 2:.0f} px): counts and patches are of different images, or the pixel size is wrong"
        )
