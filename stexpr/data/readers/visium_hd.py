"""Visium HD: the `binned_outputs` of Space Ranger 3 and 4, at one of its bin sizes or pooled to a multiple."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from stexpr.data.readers.folder import FolderRequest, agreed_mpp, check_inside, section_of_folder, stated
from stexpr.data.readers.outs import Outs, outs_files, read_outs, spots_at
from stexpr.data.readers.positions import Positions, lattice_steps_px
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
    return outs_files(request, _bins(request)[0])


def read_visium_hd(request: FolderRequest) -> Section:
    """Read a Visium HD section, bins in tissue only.

    A size that the folder lacks is pooled from the largest of its bins that divides it; a pooled bin sums those of its bins
    that are in tissue (`obs["n_bins"]` of them), and its center is that of the whole square, in tissue or not. The pixel size
    is `microns_per_pixel`, held against the pitch of the bins and the image file.
    """
    folder, size, wanted = _bins(request)
    outs = read_outs(request, folder)
    mpp = agreed_mpp(request, outs.image, *_measured(outs, size))
    within = outs.positions.in_tissue[outs.rows]
    left_out = outs.unmeasured()
    left_out["not in tissue"] += int((~within).sum())
    notes = outs.notes
    if wanted != size:
        left_out = {f"bins of {size} um {why}": n for why, n in left_out.items()}
        notes = (*notes, f"bins of {wanted} um pooled from those of {size} um")
    keys, members, centers = pooled_grid(outs.positions, outs.rows[within], wanted // size)
    check_inside(request, outs.image, centers * outs.scale, np.ones(len(keys), dtype=bool))
    entries = np.ones(len(members), np.int64), (members, np.flatnonzero(within))
    counts = sp.csr_matrix(sp.csr_matrix(entries, (len(keys), len(within))) @ outs.matrix.counts)
    barcodes = _strings([f"s_{wanted:03d}um_{row:05d}_{column:05d}-1" for row, column in keys])
    spots, namespace, more = spots_at(request, replace(outs.matrix, barcodes=barcodes, counts=counts), centers * outs.scale)
    spots.obs[["array_row", "array_col"]] = keys
    spots.obs["n_bins"] = np.bincount(members, minlength=len(keys))
    return section_of_folder(
        request, spots, namespace, outs.image, mpp, left_out=left_out, diameter_um=float(wanted), pitch_um=float(wanted),
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


def _bins(request: FolderRequest) -> tuple[Path, int, int]:
    """Find the folder of the bins to read, their size, and the size wanted, um."""
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
    return sizes[max(fitting)], max(fitting), wanted


def _measured(outs: Outs, size: int) -> tuple[float, str, dict[str, float]]:
    """Take the pixel size from the scale factors, and measure it on the bins besides."""
    if (stored := outs.factors.get("bin_size_um", size)) != size:
        raise ScaleError(f"{outs.positions.path.parent}: its scale factors are of bins of {stored:g} um; copy the folder again")
    pitch_px = float(lattice_steps_px(outs.positions, _STEPS).mean()) * outs.scale
    if (said := outs.factors.get("microns_per_pixel")) is None:
        return size / pitch_px, f"spot pitch ({size} um / {pitch_px:.4g} px)", {}
    return said / outs.scale, "scalefactors_json.json", {"the pitch of the bins": size / pitch_px}


def _strings(names: list[str]) -> Any:
    import pyarrow as pa

    return pa.array(names, pa.string())
