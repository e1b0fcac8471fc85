"""What Visium and Visium HD share: a folder with a matrix and a `spatial` folder, as Space Ranger writes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float64, Int64

from stexpr.data.images import SlideImage
from stexpr.data.readers.assembly import make_spots
from stexpr.data.readers.folder import FolderRequest
from stexpr.data.readers.matrices import FeatureMatrix, find_matrix, gene_table, genes_of, matrix_files, read_matrix
from stexpr.data.readers.positions import (
    Positions,
    choose_image,
    image_file,
    positions_file,
    read_positions,
    read_scale_factors,
    scale_factors_file,
)
from stexpr.data.section import GeneNamespace

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Outs:
    """The contents of a folder.

    Attributes:
        matrix: Counts.
        positions: Of all barcodes of the array.
        rows: The position of each barcode of the matrix.
        factors: The numbers in `scalefactors_json.json`.
        image: The image given, or the folder's small one.
        scale: Its pixels per full-resolution pixel of the positions.
        notes: What to note of the image.
    """

    matrix: FeatureMatrix
    positions: Positions
    rows: Int64[Array, "S"]
    factors: dict[str, float]
    image: SlideImage
    scale: float
    notes: tuple[str, ...]

    def unmeasured(self) -> dict[str, int]:
        """Count the positions that the matrix says nothing of."""
        absent = np.ones(len(self.positions.in_tissue), dtype=bool)
        absent[self.rows] = False
        return {
            "not in tissue": int((absent & ~self.positions.in_tissue).sum()),
            "in tissue but not in counts": int((absent & self.positions.in_tissue).sum()),
        }


def read_outs(request: FolderRequest, folder: Path) -> Outs:
    """Read a folder that holds a matrix and `spatial`.

    Raises:
        DataError: A file is missing, truncated, or does not fit the others.
    """
    matrix = read_matrix(find_matrix(folder, request.matrix))
    positions = read_positions(folder / "spatial")
    rows = positions.rows_of(matrix.barcodes, matrix.path)
    factors = read_scale_factors(folder / "spatial")
    return Outs(matrix, positions, rows, factors, *choose_image(request, folder / "spatial", factors))


def outs_files(request: FolderRequest, folder: Path) -> list[Path]:
    """List the files that `read_outs` reads.

    Raises:
        DataError: One is missing.
    """
    spatial = folder / "spatial"
    matrix = matrix_files(find_matrix(folder, request.matrix))
    return [*matrix, positions_file(spatial), scale_factors_file(spatial), image_file(request, spatial)]


def spots_at(
    request: FolderRequest, matrix: FeatureMatrix, centers: Float64[Array, "S 2"]
) -> tuple[Any, GeneNamespace, tuple[str, ...]]:
    """Make the AnnData of a matrix, genes only.

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
