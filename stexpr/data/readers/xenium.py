"""Xenium: transcripts pooled into squares, brought onto an H&E image of the same section."""

import re
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float64

from stexpr.data.rasters import reason
from stexpr.data.readers.assembly import make_spots
from stexpr.data.readers.folder import (
    FolderRequest,
    agreed_mpp,
    check_inside,
    existing,
    section_of_folder,
    stated,
)
from stexpr.data.readers.matrices import GENES, Features, gene_table, matrix_files, read_features
from stexpr.data.readers.positions import read_json
from stexpr.data.readers.transcripts import PooledTranscripts, pool_transcripts
from stexpr.data.section import GeneNamespace, Section, check_mpp
from stexpr.errors import DataError, GeneError, ScaleError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_IMAGES = ("*he_image.ome.tif", "*he_image.ome.tiff")
_SQUARE = "such as 55 um"
_SHEAR = 0.05


def xenium_files(request: FolderRequest) -> list[Path]:
    """List the files that `read_xenium` reads.

    Raises:
        DataError: One is missing.
    """
    image = _image_file(request)
    panel = _panel_file(request.folder)
    needed = [_transcripts_file(request.folder), _experiment_file(request.folder), image, _alignment_file(request, image)]
    return [*needed, *([] if panel is None else _panel_files(panel))]


def read_xenium(request: FolderRequest) -> Section:
    """Read a Xenium section as squares of transcripts.

    The squares lie on Xenium's axes, from its origin; on an H&E that is rotated against them they are rotated too, while
    patches are not. Only squares that hold a transcript become spots. Controls and calls of a quality value below 20 are left
    out and counted by kind. The alignment matrix leads from H&E pixels to pixels of Xenium's morphology image, whose size is
    in `experiment.xenium`; so it gives the pixel size of the H&E as well, which is held against the image file.
    """
    side_um = stated(request.pseudo_spot_um, "pseudo_spot_um", request, _SQUARE)
    image_path = _image_file(request)
    matrix = read_alignment(_alignment_file(request, image_path))
    xenium_mpp = _pixel_size(_experiment_file(request.folder))
    image = request.open_image(image_path)
    scale = affine_scale(matrix)
    source = f"alignment ({scale:.4g} Xenium px of {xenium_mpp:g} um per image px)"
    mpp = agreed_mpp(request, image, scale * xenium_mpp / request.pixel_scale, source)
    panel_file = _panel_file(request.folder)
    panel = None if panel_file is None else read_features(panel_file)
    pooled = pool_transcripts(_transcripts_file(request.folder), side_um, kinds=_kinds(panel))
    centers = to_image((pooled.squares + 0.5) * side_um, matrix, xenium_mpp) * request.pixel_scale
    check_inside(request, image, centers, np.ones(len(centers), dtype=bool))
    table, counts, namespace, notes = _genes(request, pooled, panel)
    told = {
        "transcripts": pooled.total,
        "transcripts_pooled": int(pooled.counts.sum()),
        "transcripts_left_out": pooled.left_out,
        "pseudo_spot_um": side_um,
    }
    barcodes = [f"x{column}y{row}" for column, row in pooled.squares]
    spots = make_spots(barcodes, table, counts, centers, notes=notes | told)
    spots.obs[["array_row", "array_col"]] = pooled.squares[:, ::-1]
    said = [f"left out: {n} of {pooled.total} transcripts: {why}" for why, n in pooled.left_out.items()]
    return section_of_folder(
        request, spots, namespace, image, mpp, left_out={}, diameter_um=side_um, pitch_um=side_um,
        notes=(f"transcripts pooled into squares of {side_um:g} um", *said),
    )  # fmt: skip


def read_alignment(path: Path) -> Float64[Array, "3 3"]:
    """Read the matrix that Xenium Explorer exports: three lines of three numbers, from H&E px to Xenium px.

    10x Genomics documents the direction: the matrix times (x, y, 1) of the H&E is the point on the morphology image
    (https://kb.10xgenomics.com/hc/en-us/articles/35386990499853).

    Raises:
        DataError: The file is not such a matrix.
        ScaleError: It squeezes or shears the image, as no registration of one section does.
    """
    try:
        matrix = np.loadtxt(path, delimiter=",", ndmin=2, encoding="utf-8-sig")
    except (OSError, ValueError) as err:
        raise DataError(f"{path} is not a matrix ({reason(err)}); export the transformation matrix of Xenium Explorer") from err
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], (0, 0, 1), rtol=0, atol=1e-9):
        raise DataError(
            f"{path} is not a 3 x 3 affine matrix whose last line is 0,0,1; export the transformation matrix of Xenium "
            "Explorer, not its keypoints"
        )
    wide, narrow = np.linalg.svd(matrix[:2, :2], compute_uv=False)
    if not wide <= narrow * (1 + _SHEAR):
        raise ScaleError(
            f"{path} stretches the image by {wide:.4g} one way and {narrow:.4g} the other; a registration of one section "
            "scales both ways alike"
        )
    return matrix


def affine_scale(matrix: Float64[Array, "3 3"]) -> float:
    """Return the Xenium px that an H&E px measures."""
    return float(np.sqrt(abs(np.linalg.det(matrix[:2, :2]))))


def to_image(points_um: Float64[Array, "N 2"], matrix: Float64[Array, "3 3"], xenium_mpp: float) -> Float64[Array, "N 2"]:
    """Bring points of Xenium's space to the H&E.

    Args:
        points_um: x then y.
        matrix: From H&E px to Xenium px.
        xenium_mpp: Microns per Xenium px.

    Returns:
        H&E px, x then y.
    """
    moved: Float64[Array, "N 2"] = np.linalg.solve(matrix[:2, :2], (points_um / xenium_mpp - matrix[:2, 2]).T).T
    return moved


def _genes(
    request: FolderRequest, pooled: PooledTranscripts, panel: Features | None
) -> tuple[pd.DataFrame, sp.csr_matrix, GeneNamespace, dict[str, Any]]:
    """Name genes as the panel does, which also knows those that no transcript shows."""
    where = _transcripts_file(request.folder)
    if panel is None:
        if request.gene_namespace == "ensembl":
            raise GeneError(
                f"{where} names genes by symbol, and {request.folder} holds no cell_feature_matrix to tell their Ensembl ids; "
                "copy it too, or say gene_namespace: symbol"
            )
        index = pd.DataFrame(index=pooled.genes)
        return index, pooled.counts, request.gene_namespace or "symbol", {}
    genes = {symbol: gene for gene, symbol, kind in zip(panel.ids, panel.symbols, panel.types, strict=True) if kind == GENES}
    unlisted = [name for name in pooled.genes if name not in genes]
    symbols = [*genes, *unlisted]
    place = {name: i for i, name in enumerate(symbols)}
    move = sp.csr_matrix(
        (np.ones(len(pooled.genes), np.int64), (range(len(pooled.genes)), [place[name] for name in pooled.genes])),
        (len(pooled.genes), len(symbols)),
    )
    ids = [genes.get(symbol, symbol) for symbol in symbols]
    table, namespace, notes = gene_table(ids, symbols, request.gene_namespace, where)
    unlisted_too = {"genes_not_in_the_panel": unlisted} if unlisted else {}
    return table, sp.csr_matrix(pooled.counts @ move), namespace, notes | unlisted_too


def _kinds(panel: Features | None) -> dict[str, str]:
    """Name the features of the panel that are no genes."""
    if panel is None:
        return {}
    return {symbol: kind.lower() for symbol, kind in zip(panel.symbols, panel.types, strict=True) if kind != GENES}


def _pixel_size(path: Path) -> float:
    """Read the pixel size of Xenium's morphology image."""
    size = read_json(path).get("pixel_size")
    if not isinstance(size, int | float) or isinstance(size, bool):
        raise DataError(f"{path} says no pixel_size; copy it again from the instrument's output")
    check_mpp(float(size), str(path))
    return float(size)


def _transcripts_file(folder: Path) -> Path:
    return existing([folder / "transcripts.parquet"], "its transcripts", folder)


def _experiment_file(folder: Path) -> Path:
    return existing([folder / "experiment.xenium"], "its manifest", folder)


def _panel_file(folder: Path) -> Path | None:
    names = ("cell_feature_matrix.h5", "cell_feature_matrix")
    return next((folder / name for name in names if (folder / name).exists()), None)


def _panel_files(panel: Path) -> list[Path]:
    return matrix_files(panel)[:1]  # of a folder of text files only the features are read


def _image_file(request: FolderRequest) -> Path:
    if request.image is not None:
        return request.image
    found = sorted(path for pattern in _IMAGES for path in request.folder.glob(pattern))
    if len(found) != 1:
        raise DataError(
            f"{request.folder} holds {len(found)} files named *he_image.ome.tif, not one; name the H&E image of section "
            f"{request.section}"
        )
    return found[0]


def _alignment_file(request: FolderRequest, image: Path) -> Path:
    """Return the matrix given, or the one that 10x Genomics puts beside `X_he_image.ome.tif`: `X_he_imagealignment.csv`."""
    if request.alignment is not None:
        return request.alignment
    beside = image.with_name(re.sub(r"(\.ome)?\.tiff?$", "", image.name) + "alignment.csv")
    if not beside.is_file():
        raise DataError(
            f"{beside} does not exist; name the alignment of {image.name}: the transformation matrix that Xenium Explorer "
            "exports, from H&E pixels to Xenium pixels"
        )
    return beside
