"""Visium: the `outs` folder of Space Ranger 1 to 4, of a slide with fiducials or of CytAssist."""

from pathlib import Path
from typing import Any

import numpy as np

from stexpr.data.readers.assembly import make_spots
from stexpr.data.readers.folder import FolderRequest, agreed_mpp, check_inside, section_of_folder
from stexpr.data.readers.matrices import FeatureMatrix, find_matrix, gene_table, genes_of, matrix_files, read_matrix
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
from stexpr.data.section import GeneNamespace, Section
from stexpr.errors import ScaleError

PITCH_UM = 100.0
DIAMETER_UM = 55.0
_DIAMETERS_UM = (65.0, 55.0)
"""What `spot_diameter_fullres` measures: 10x Genomics documents "a theoretical 65 um spot", not the 55 um of the slide."""
_STEPS = ((0, 2), (1, 1), (1, -1))
"""The neighbors of a spot on the hexagonal array, whose rows use every second column."""
_SKEW = 0.05


def space_ranger_files(request: FolderRequest) -> list[Path]:
    """List the files that `read_space_ranger` reads.

    Raises:
        DataError: One is missing.
    """
    spatial = request.folder / "spatial"
    matrix = matrix_files(find_matrix(request.folder, request.matrix))
    return [*matrix, positions_file(spatial), scale_factors_file(spatial), image_file(request, spatial)]


def read_space_ranger(request: FolderRequest) -> Section:
    """Read a Visium section.

    Centers are (`pxl_col_in_fullres`, `pxl_row_in_fullres`) of the image given to Space Ranger: with CytAssist the
    microscope's, not the instrument's. Without that image, the folder's small one is taken, and noted. The pixel size is
    measured on the array, whose spots lie 100 um apart, and held against the spot diameter and the image file. Features that
    are no genes are left out and counted; spots outside tissue keep `in_tissue` False.
    """
    spatial = request.folder / "spatial"
    matrix = read_matrix(find_matrix(request.folder, request.matrix))
    positions = read_positions(spatial)
    rows = positions.rows_of(matrix.barcodes, matrix.path)
    factors = read_scale_factors(spatial)
    image, scale, notes = choose_image(request, spatial, factors)
    steps = lattice_steps_px(positions, _STEPS)
    if steps.max() > (1 + _SKEW) * steps.min():
        raise ScaleError(
            f"{positions.path}: neighbors on the array are {', '.join(f'{step:.4g}' for step in steps)} px apart, not equally "
            "far: rows and columns are swapped, or this is no Visium array"
        )
    pitch_px = float(steps.mean())
    source = f"spot pitch ({PITCH_UM:g} um / {pitch_px * scale:.4g} px)"
    others = {}
    if diameter := factors.get("spot_diameter_fullres"):
        size = min(_DIAMETERS_UM, key=lambda um: abs(um / diameter - PITCH_UM / pitch_px))
        others[f"spot_diameter_fullres ({size:g} um)"] = size / diameter / scale
    mpp = agreed_mpp(request, image, PITCH_UM / pitch_px / scale, source, others)
    spots, namespace, more = spots_at(request, matrix, positions.centers[rows] * scale)
    spots.obs["in_tissue"] = positions.in_tissue[rows]
    spots.obs[["array_row", "array_col"]] = positions.grid[rows]
    check_inside(request, image, positions.centers[rows] * scale, positions.in_tissue[rows])
    return section_of_folder(
        request, spots, namespace, image, mpp, left_out=unmeasured(positions, rows), diameter_um=DIAMETER_UM,
        pitch_um=PITCH_UM, notes=(*notes, *more),
    )  # fmt: skip


def spots_at(request: FolderRequest, matrix: FeatureMatrix, centers: Any) -> tuple[Any, GeneNamespace, tuple[str, ...]]:
    """Make the AnnData of a matrix of Space Ranger, genes only.

    Returns:
        It, what its genes are named by, and what to note.
    """
    genes, counts, others = genes_of(matrix)
    table, namespace, notes = gene_table(genes.ids, genes.symbols, request.gene_namespace, matrix.path)
    known = {**notes, "matrix": matrix.path.name.removesuffix(".h5"), "features_left_out": others}
    spots = make_spots(matrix.barcodes.to_pylist(), table, counts, centers, notes=known)
    said = [f"left out: {n} features of type {kind}" for kind, n in others.items()]
    if request.matrix is None and matrix.path.name.startswith("raw"):
        said.append("the folder holds no filtered matrix: read from the raw one")
    return spots, namespace, tuple(said)


def unmeasured(positions: Positions, rows: Any) -> dict[str, int]:
    """Count the positions that the matrix says nothing of."""
    absent = np.ones(len(positions.in_tissue), dtype=bool)
    absent[rows] = False
    return {
        "not in tissue": int((absent & ~positions.in_tissue).sum()),
        "in tissue but not in counts": int((absent & positions.in_tissue).sum()),
    }
