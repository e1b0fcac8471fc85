"""A Visium section that is drawn, as Space Ranger would write it: the folder of the second tutorial."""

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.sparse as sp
import tifffile
from PIL import Image

from stexpr.data.synthetic_genes import draw_counts, plan_genes
from stexpr.data.synthetic_image import Stain, draw
from stexpr.data.synthetic_tissue import grow, measure_spots

PITCH_UM, SPOT_UM, MARGIN_PX = 100, 55, 140
N_ROWS, N_COLUMNS = 15, 26
HIRES_PX = 600


def write_made_visium(
    folder: Path,
    *,
    genes: int,
    null_fraction: float = 0.3,
    seed: int = 0,
    patient: int = 7,
) -> Path:
    """Write `outs` and, beside it, the microscope's image, 1 um/px.

    Args:
        folder: Made if need be.
        genes: As many as those of the synthetic cohort the model was trained on.
        null_fraction: Likewise.
        seed: Of that cohort, so that the same genes follow the same morphology.
        patient: Any that is not in that cohort.

    Returns:
        The image; `outs` lies beside it.
    """
    spatial = folder / "outs" / "spatial"
    spatial.mkdir(parents=True, exist_ok=True)
    grid = np.array(
        [
            (row, column)
            for row in range(N_ROWS)
            for column in range(row % 2, N_COLUMNS, 2)
        ]
    )
    centers = (
        np.column_stack(
            [
                grid[:, 1] * PITCH_UM / 2,
                grid[:, 0] * PITCH_UM * np.sin(np.pi / 3),
            ]
        )
        + MARGIN_PX
    )
    side = int(-(-(centers.max() + MARGIN_PX) // 4) * 4)
    of_patient, rng = (
        np.random.default_rng([seed, 1, patient]),
        np.random.default_rng([seed, 2, patient]),
    )
    programs = plan_genes(
        np.random.default_rng([seed, 0]), genes, null_fraction
    )
    shift, stain = of_patient.normal(0, 0.3, size=genes), Stain.draw(of_patient)
    tissue = grow(rng, centers, side)
    image = draw(rng, tissue, stain)
    rates = programs.rates(measure_spots(tissue, centers, SPOT_UM), shift)
    library = 10 * genes * np.exp(rng.normal(0, 0.3, size=(len(grid), 1)))
    barcodes = [f"{''.join(rng.choice(list('ACGT'), 16))}-1" for _ in grid]
    counts = draw_counts(rng, rates * library, 0.1)
    _write_matrix(
        folder / "outs" / "filtered_feature_bc_matrix.h5",
        barcodes,
        programs.names,
        counts,
    )
    header = "barcode,in_tissue,array_row,array_col,pxl_row_in_fullres,pxl_col_in_fullres"
    places = zip(
        barcodes,
        grid.tolist(),
        np.round(centers).astype(int).tolist(),
        strict=True,
    )
    lines = [
        f"{barcode},1,{row},{column},{y},{x}"
        for barcode, (row, column), (x, y) in places
    ]
    (spatial / "tissue_positions.csv").write_text(
        "\n".join([header, *lines]) + "\n"
    )
    small = Image.fromarray(image).resize(
        (HIRES_PX, HIRES_PX), Image.Resampling.BOX
    )
    small.save(spatial / "tissue_hires_image.png")
    factors = {
        "spot_diameter_fullres": 65.0,
        "tissue_hires_scalef": HIRES_PX / side,
        "tissue_lowres_scalef": HIRES_PX / side,
    }
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))
    tifffile.imwrite(
        folder / "tissue.tif",
        image,
        photometric="rgb",
        compression="zlib",
        resolution=(1e4, 1e4),
        resolutionunit="CENTIMETER",
    )
    return folder / "tissue.tif"


def _write_matrix(
    path: Path, barcodes: list[str], symbols: Any, counts: Any
) -> None:
    table = sp.csr_matrix(counts)
    with h5py.File(path, "w") as file:
        group = file.create_group("matrix")
        group["data"], group["indices"], group["indptr"] = (
            table.data.astype("<i4"),
            table.indices,
            table.indptr,
        )
        group["shape"], group["barcodes"] = (
            np.array(table.shape[::-1], dtype="<i4"),
            np.array(barcodes, dtype="S"),
        )
        features = group.create_group("features")
        features["id"] = np.array(
            [f"ENSG{i:011d}" for i in range(1, len(symbols) + 1)], dtype="S"
        )
        features["name"] = np.array(list(symbols), dtype="S")
        features["feature_type"] = np.array(
            ["Gene Expression"] * len(symbols), dtype="S"
        )
        features["genome"] = np.array(["made"] * len(symbols), dtype="S")
