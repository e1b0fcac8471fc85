"""Output folders of 10x Genomics' software, written with h5py, pyarrow and SciPy alone from a tissue that is known.

Names, data types, column orders, attributes and the order of dimensions are those of the real files, so that a reader that
passes here meets nothing new there. Sizes are small: a section takes a fraction of a second.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

from vendor_files import write_matrix_folder, write_matrix_h5, write_spatial, write_tiff, write_transcripts

_EOSIN = np.array([196.0, 138.0, 182.0])


@dataclass(frozen=True)
class KnownTissue:
    """An H&E-like image whose colors decide what is expressed.

    Attributes:
        image: H x W x 3.
        mpp: Microns per pixel.
        ids: Ensembl ids.
        symbols: Gene symbols, in the same order.
        slopes: Genes x 3: how the logarithm of a gene's rate follows red, green and blue.
    """

    image: Any
    mpp: float
    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    slopes: Any

    def in_tissue(self, xy: Any) -> Any:
        """Whether points, px, are on the disk of tissue; beyond it the image is white."""
        height, width = self.image.shape[:2]
        return np.hypot(xy[:, 0] / width - 0.5, xy[:, 1] / height - 0.5) < 0.42

    def rates(self, xy: Any, area_um2: float) -> Any:
        """Expected counts, points x genes; two per gene on 1,000 um² of middling color."""
        height, width = self.image.shape[:2]
        x, y = np.clip(xy.astype(int), 0, (width - 1, height - 1)).T
        color = (self.image[y, x] - _EOSIN) / 36
        return 2 * area_um2 / 1000 * np.exp(color @ self.slopes.T)


@dataclass(frozen=True)
class Written:
    """What was written, for comparison.

    Attributes:
        folder: The output folder.
        image: The H&E beside it.
        barcodes: Of the spots (or bins) in tissue.
        centers: Their centers, px of the image, x then y.
        counts: Spots x genes.
    """

    folder: Path
    image: Path
    barcodes: tuple[str, ...]
    centers: Any
    counts: Any


def make_tissue(seed: int = 0, *, side_px: int = 640, mpp: float = 2.0, n_genes: int = 24) -> KnownTissue:
    """Draw smooth fields of color on a disk, and genes the first half of which follow them."""
    from scipy.ndimage import gaussian_filter, zoom

    rng = np.random.default_rng(seed)
    coarse = gaussian_filter(rng.normal(size=(16, 16, 3)), (1.2, 1.2, 0), mode="wrap")
    field = zoom(coarse / coarse.std(), (side_px / 16, side_px / 16, 1), order=1)
    image = _EOSIN + 25 * field + rng.normal(0, 5, field.shape)
    slopes = np.zeros((n_genes, 3))
    slopes[: n_genes // 2] = rng.normal(0, 0.5, (n_genes // 2, 3))
    ids = tuple(f"ENSG{i:011d}" for i in range(1, n_genes + 1))
    tissue = KnownTissue(image.clip(0, 235).astype(np.uint8), mpp, ids, tuple(f"GENE{i}" for i in range(n_genes)), slopes)
    y, x = np.mgrid[:side_px, :side_px]
    outside = ~tissue.in_tissue(np.column_stack([x.ravel(), y.ravel()])).reshape(side_px, side_px)
    tissue.image[outside] = 243
    return tissue


def write_space_ranger(
    folder: Path,
    tissue: KnownTissue,
    *,
    version: int = 2,
    matrix: str = "h5",
    cytassist: bool = False,
    antibodies: int = 0,
    angle: float = 0.02,
    seed: int = 0,
) -> Written:
    """Write `outs` of a Visium section, and the microscope's image beside it.

    Args:
        folder: Made; `outs` and `image.tif` go into it.
        tissue: What lies on the slide.
        version: Of Space Ranger; 1 writes positions without a header and genes only.
        matrix: `h5`, `mtx` or `both`.
        cytassist: Probes on a CytAssist slide; its own picture is in `spatial` too.
        antibodies: Features of another type.
        angle: Of the array on the image, radians.
        seed: Of the counts.
    """
    outs = folder / "outs"
    (outs / "spatial").mkdir(parents=True)
    rng = np.random.default_rng(seed)
    pitch = 100 / tissue.mpp
    height, width = tissue.image.shape[:2]
    n_rows, n_columns = int(height / pitch / np.sin(np.pi / 3)), 2 * int(width / pitch)
    grid = np.array([(r, c) for r in range(n_rows) for c in range(r % 2, n_columns, 2)])
    flat = np.column_stack([(grid[:, 1] + 0.5) * pitch / 2, (grid[:, 0] + 0.5) * pitch * np.sin(np.pi / 3)])
    middle = np.array([width, height]) / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    centers = (flat - middle) @ turn + middle
    if not cytassist:
        centers = np.round(centers)
    barcodes = _barcodes(len(grid), rng)
    in_tissue = tissue.in_tissue(centers)
    counts = rng.poisson(tissue.rates(centers, np.pi * 27.5**2) * np.where(in_tissue, 1, 0.02)[:, None])
    proteins = rng.poisson(30, (len(grid), antibodies))
    features = _features(tissue, antibodies)
    for kind, rows in (("filtered", np.flatnonzero(in_tissue)), ("raw", np.arange(len(grid)))):
        table = sp.csr_matrix(np.hstack([counts, proteins])[rows])
        names = [barcodes[i] for i in rows]
        path = outs / f"{kind}_feature_bc_matrix"
        if matrix in ("h5", "both"):
            write_matrix_h5(path.with_suffix(".h5"), names, features, table, probes=cytassist)
        if matrix in ("mtx", "both"):
            write_matrix_folder(path, names, features, table)
    lines = [
        f"{b},{int(i)},{r},{c},{_pixel(y)},{_pixel(x)}"
        for b, i, (r, c), (x, y) in zip(barcodes, in_tissue, grid, centers, strict=True)
    ]
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    name = "tissue_positions_list.csv" if version == 1 else "tissue_positions.csv"
    (outs / "spatial" / name).write_text("\n".join(lines if version == 1 else [header, *lines]) + "\n")
    write_spatial(
        outs / "spatial", tissue.image, {"spot_diameter_fullres": 65 / tissue.mpp, "fiducial_diameter_fullres": 105.0}
    )
    if cytassist:
        write_tiff(outs / "spatial" / "cytassist_image.tiff", tissue.image[::3, ::4], None)
    write_tiff(folder / "image.tif", tissue.image, tissue.mpp)
    rows = np.flatnonzero(in_tissue)
    return Written(outs, folder / "image.tif", tuple(barcodes[i] for i in rows), centers[rows], counts[rows])


def write_visium_hd(folder: Path, tissue: KnownTissue, *, sizes: Sequence[int] = (8, 16), seed: int = 0) -> Written:
    """Write `binned_outputs` of a Visium HD section; what is returned is of the smallest bins.

    Args:
        folder: Made; `outs` and `image.tif` go into it.
        tissue: What lies on the slide.
        sizes: Of the bins, um, each a multiple of the first.
        seed: Of the counts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    height, width = tissue.image.shape[:2]
    base, um = sizes[0], np.array([width, height]) * tissue.mpp
    n = int(0.95 * um.min() / max(sizes)) * max(sizes) // base
    origin = (um - n * base) / 2
    fine = None
    written = None
    for size in sizes:
        k = size // base
        row, column = (axis.ravel() for axis in np.mgrid[: n // k, : n // k])
        centers = (np.column_stack([column + 0.5, row + 0.5]) * size + origin) / tissue.mpp
        if fine is None:
            fine = rng.poisson(tissue.rates(centers, size**2)).reshape(n, n, -1)
            fine[~tissue.in_tissue(centers).reshape(n, n)] = 0
        counts = fine.reshape(n // k, k, n // k, k, -1).sum(axis=(1, 3)).reshape(len(row), -1)
        barcodes = [f"s_{size:03d}um_{r:05d}_{c:05d}-1" for r, c in zip(row, column, strict=True)]
        in_tissue = tissue.in_tissue(centers)
        place = folder / "outs" / "binned_outputs" / f"square_{size:03d}um"
        (place / "spatial").mkdir(parents=True)
        rows = np.flatnonzero(in_tissue)
        names = [barcodes[i] for i in rows]
        write_matrix_h5(place / "filtered_feature_bc_matrix.h5", names, _features(tissue), sp.csr_matrix(counts[rows]))
        table = {
            "barcode": barcodes,
            "in_tissue": in_tissue.astype(np.int64),
            "array_row": row,
            "array_col": column,
            "pxl_row_in_fullres": centers[:, 1],
            "pxl_col_in_fullres": centers[:, 0],
        }
        pq.write_table(pa.table(table), place / "spatial" / "tissue_positions.parquet")
        factors = {"spot_diameter_fullres": size / tissue.mpp, "bin_size_um": float(size), "microns_per_pixel": tissue.mpp}
        write_spatial(place / "spatial", tissue.image, factors)
        if size == base:
            written = (tuple(names), centers[rows], counts[rows])
    write_tiff(folder / "image.tif", tissue.image, tissue.mpp)
    assert written is not None
    return Written(folder / "outs", folder / "image.tif", *written)


XENIUM_MPP = 0.2125
CONTROL_FEATURES = {
    "NegControlProbe_00042": "negative_control_probe",
    "NegControlCodeword_0500": "negative_control_codeword",
    "antisense_TUBB2B": "negative_control_probe",
    "BLANK_0069": "unassigned_codeword",
    "UnassignedCodeword_0498": "unassigned_codeword",
    "DeprecatedCodeword_0334": "deprecated_codeword",
    "Intergenic_Region_00012": "genomic_control_probe",
}


def write_xenium(
    folder: Path, tissue: KnownTissue, *, version: int = 3, panel: bool = True, row_group: int = 5_000, seed: int = 0
) -> Written:
    """Write the output of a Xenium Analyzer, with an H&E that lies at a right angle to it; `counts` are transcripts x 1.

    Args:
        folder: Made; holds everything.
        tissue: The H&E.
        version: Of the instrument's software; 1 stores names as bytes and tells controls by name only.
        panel: Whether the matrix of cells is there, which gives Ensembl ids.
        row_group: Transcripts per row group.
        seed: Of the transcripts.

    Returns:
        `barcodes` are the transcripts' genes, `centers` their points on the H&E, `counts` whether each is good (a gene of a
        quality value of 20 or more).
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    height, width = tissue.image.shape[:2]
    xy = rng.uniform(0, 1, (60_000, 2)) * [width, height]
    xy = xy[tissue.in_tissue(xy)]
    rates = tissue.rates(xy, 1.0)
    gene = (rng.uniform(0, 1, (len(xy), 1)) < np.cumsum(rates, axis=1) / rates.sum(axis=1, keepdims=True)).argmax(axis=1)
    names = np.array(tissue.symbols, dtype=object)[gene]
    category = np.full(len(xy), "predesigned_gene", dtype=object)
    control = rng.uniform(0, 1, len(xy)) < 0.05
    names[control] = rng.choice(list(CONTROL_FEATURES), control.sum())
    category[control] = [CONTROL_FEATURES[name] for name in names[control]]
    quality = np.where(rng.uniform(0, 1, len(xy)) < 0.8, 40.0, rng.uniform(0, 30, len(xy))).astype(np.float32)
    scale = tissue.mpp / XENIUM_MPP
    matrix = np.array([[0.01 * scale, scale, 300.0], [-scale, 0.01 * scale, scale * width + 200.0], [0.0, 0.0, 1.0]])
    um = (np.column_stack([xy, np.ones(len(xy))]) @ matrix.T)[:, :2] * XENIUM_MPP
    write_transcripts(folder / "transcripts.parquet", names, category, um.astype(np.float32), quality, version, row_group)
    manifest = {"major_version": 5, "minor_version": 0, "run_name": "made", "pixel_size": XENIUM_MPP, "num_cells": 1}
    (folder / "experiment.xenium").write_text(json.dumps(manifest, indent=2))
    if panel:
        kinds = [CONTROL_FEATURES[name].replace("_", " ").title() for name in CONTROL_FEATURES]
        features = _features(tissue)
        for column, more in zip(features, (CONTROL_FEATURES, CONTROL_FEATURES, kinds), strict=True):
            column.extend(more)
        cells = sp.csr_matrix((1, len(features[0])), dtype=np.int32)
        write_matrix_h5(folder / "cell_feature_matrix.h5", ["aaaadnje-1"], features, cells)
    np.savetxt(folder / "made_he_imagealignment.csv", matrix, delimiter=",", fmt="%.12g")
    write_tiff(folder / "made_he_image.ome.tif", tissue.image, tissue.mpp, ome=True)
    good = ~control & (quality >= 20)
    return Written(folder, folder / "made_he_image.ome.tif", tuple(names), xy, good[:, None])


def _features(tissue: KnownTissue, antibodies: int = 0) -> tuple[list[str], list[str], list[str]]:
    more = [f"CD{i}.1" for i in range(antibodies)]
    types = ["Gene Expression"] * len(tissue.ids) + ["Antibody Capture"] * antibodies
    return [*tissue.ids, *more], [*tissue.symbols, *more], types


def _barcodes(n: int, rng: np.random.Generator) -> list[str]:
    seen: dict[str, None] = {}
    while len(seen) < n:
        seen["".join(rng.choice(list("ACGT"), 16)) + "-1"] = None
    return list(seen)


def _pixel(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(float(value))
