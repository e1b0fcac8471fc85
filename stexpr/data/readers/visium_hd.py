"""Visium HD: the `binned_outputs` of Space Ranger 3 and 4, at one of its bin sizes or pooled to a multiple."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from stexpr.data.readers.folder import (
    FolderRequest,
    agreed_mpp,
    check_inside,
    section_of_folder,
    stated,
)
from stexpr.data.readers.matrices import find_matrix, matrix_files, read_matrix
from stexpr.data.readers.positions import (
    Positions,
    choose_image,
    image_file,
    lattice_steps_px,
    positions_file,
    read_positions,
    read_scale_factors,
    scale_factors_file,
)
from stexpr.data.readers.space_ranger import spots_at, unmeasured
from stexpr.data.section import Section
from stexpr.errors import ConfigError, DataError, ScaleError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_SQUARE = re.compile(r"square_(\d{3})um")
_STEPS = ((0, 1), (1, 0))


def visium_hd_files(request: FolderRequest) -> list[Path]:
    """List the files that `read_visium_hd` reads.

    Raises:
        DataError: One is missing.
    """
    folder, _ = _bins(request)
    spatial = folder / "spatial"
    matrix = matrix_files(find_matrix(folder, request.matrix))
    return [*matrix, positions_file(spatial), scale_factors_file(spatial), image_file(request, spatial)]


def read_visium_hd(request: FolderRequest) -> Section:
    """Read a Visium HD section, bins in tissue only.

    A size that the folder lacks is pooled from the largest of its bins that divides it; a pooled bin sums those of its bins
    that are in tissue (`obs["n_bins"]` of them), and its center is that of the whole square, in tissue or not. The pixel size
    is `microns_per_pixel`, held against the pitch of the bins and the image file.
    """
    wanted = stated(request.bin_um, "bin_um", request, "such as 16 or 56 um")
    folder, size = _bins(request)
    spatial = folder / "spatial"
    matrix = read_matrix(find_matrix(folder, request.matrix))
    positions = read_positions(spatial)
    rows = positions.rows_of(matrix.barcodes, matrix.path)
    factors = read_scale_factors(spatial)
    image, scale, notes = choose_image(request, spatial, factors)
    mpp = agreed_mpp(request, image, *_measured(positions, factors, size, scale, folder))
    left_out = unmeasured(positions, rows)
    within = positions.in_tissue[rows]
    left_out["not in tissue"] += int((~within).sum())
    if wanted != size:
        left_out = {f"bins of {size} um {why}": n for why, n in left_out.items()}
    keys, members, centers = pooled_grid(positions, rows[within], wanted // size)
    pooling = sp.csr_matrix((np.ones(within.sum(), np.int64), (members, np.flatnonzero(within))), (len(keys), len(rows)))
    barcodes = [f"s_{wanted:03d}um_{row:05d}_{column:05d}-1" for row, column in keys]
    pooled = replace(matrix, barcodes=_strings(barcodes), counts=sp.csr_matrix(pooling @ matrix.counts))
    spots, namespace, more = spots_at(request, pooled, centers * scale)
    spots.obs[["array_row", "array_col"]] = keys
    spots.obs["n_bins"] = np.bincount(members, minlength=len(keys))
    check_inside(request, image, centers * scale, np.ones(len(keys), dtype=bool))
    if wanted != size:
        more = (*more, f"bins of {wanted} um pooled from those of {size} um")
    return section_of_folder(
        request, spots, namespace, image, mpp, left_out=left_out, diameter_um=float(wanted), pitch_um=float(wanted),
        notes=(*notes, *more),
    )  # fmt: skip


def pooled_grid(
    positions: Positions, rows: Int64[Array, "S"], factor: int
) -> tuple[Int64[Array, "P 2"], Int64[Array, "S"], Float64[Array, "P 2"]]:
    """Group bins into squares of factor x factor.

    Args:
        positions: All bins of the array.
        rows: The positions to group.
        factor: Bins along the side of a square.

    Returns:
        Row and column of each square that holds one, the square of each position, and the centers of the squares, over all
        their bins.
    """
    width = int(positions.grid[:, 1].max()) // factor + 1
    key = positions.grid[:, 0] // factor * width + positions.grid[:, 1] // factor
    squares, members = np.unique(key[rows], return_inverse=True)
    place = np.searchsorted(squares, key).clip(max=max(len(squares) - 1, 0))
    there: Array = squares[place] == key if len(squares) else np.zeros(len(key), dtype=bool)
    sums = [np.bincount(place[there], positions.centers[there, axis], len(squares)) for axis in (0, 1)]
    centers = np.column_stack(sums) / np.bincount(place[there], minlength=len(squares))[:, None]
    return np.column_stack([squares // width, squares % width]), members.reshape(-1).astype(np.int64), centers


def _bins(request: FolderRequest) -> tuple[Path, int]:
    """Find the folder of the bins to read, and their size in um."""
    wanted = stated(request.bin_um, "bin_um", request, "such as 16 or 56 um")
    root = request.folder / "binned_outputs"
    sizes = {int(match[1]): path for path in root.glob("square_*um") if (match := _SQUARE.fullmatch(path.name))}
    if not sizes:
        raise DataError(f"{root} holds no bins such as square_008um; copy the whole output folder")
    fitting = [size for size in sizes if wanted % size == 0]
    if not fitting:
        raise ConfigError(
            f"section {request.section}: bin_um is {wanted}, which no bin of {root} divides; "
            f"known: multiples of {', '.join(map(str, sorted(sizes)))}"
        )
    return sizes[max(fitting)], max(fitting)


def _measured(
    positions: Positions, factors: dict[str, float], size: int, scale: float, folder: Path
) -> tuple[float, str, dict[str, float]]:
    """Take the pixel size from the scale factors, and measure it on the bins besides."""
    if (stored := factors.get("bin_size_um", size)) != size:
        raise ScaleError(f"{folder}: its scale factors are of bins of {stored:g} um; copy the folder again")
    steps = lattice_steps_px(positions, _STEPS)
    by_pitch = size / float(steps.mean()) / scale
    if (said := factors.get("microns_per_pixel")) is None:
        return by_pitch, f"spot pitch ({size} um / {steps.mean() * scale:.4g} px)", {}
    return said / scale, "scalefactors_json.json", {"the pitch of the bins": by_pitch}


def _strings(names: list[str]) -> Any:
    import pyarrow as pa

    return pa.array(names, pa.string())
