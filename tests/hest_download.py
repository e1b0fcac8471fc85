"""A small download in the HEST-1k layout, as unlike from section to section as the real ones are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

GENES = [f"G{i:02d}" for i in range(24)]
WINDOW = 32
LEVEL0_MPP = 0.25
"""The patches, at 0.5 um/px, shrink the image twice."""
STEP = 2 * WINDOW + 8


def write_section(
    folder: Path,
    section: str,
    seed: int,
    *,
    side: int = 7,
    matrix: str = "csr",
    genes: list[str] | None = None,
    without_patch: int = 0,
    without_spot: int = 0,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write counts whose first half of the genes follow color, patches in an order of their own, and metadata."""
    import anndata
    import pandas as pd
    import scipy.sparse as sp

    rng = np.random.default_rng(seed)
    n = side * side
    color = rng.uniform(60, 220, size=(n, 3))
    log_rate = np.tile(np.linspace(2.5, 0.5, len(GENES)), (n, 1))
    for gene in range(len(GENES) // 2):
        log_rate[:, gene] += 0.8 * (color[:, gene % 3] - 140) / 50
    counts = pd.DataFrame(rng.poisson(np.exp(log_rate)).astype(np.float32), columns=GENES)
    counts = counts.reindex(columns=genes or GENES, fill_value=3.0)
    row, column = np.divmod(np.arange(n), side)
    barcodes = [f"{r:03d}x{c:03d}" for r, c in zip(row, column, strict=True)]
    centers = np.stack([column + 0.5, row + 0.5], axis=1) * STEP
    made = {"csr": sp.csr_matrix, "csc": sp.csc_matrix, "dense": np.asarray}[matrix](counts.to_numpy())
    spots = anndata.AnnData(made, obs=pd.DataFrame({"array_row": row}, index=barcodes), var=pd.DataFrame(index=counts.columns))
    spots.obsm["spatial"] = centers.round().astype(np.int64)
    spots.uns["spatial"] = {
        "ST": {
            "images": {"downscaled_fullres": np.full((50, 50, 3), 230, np.uint8)},
            "scalefactors": {"tissue_downscaled_fullres_scalef": 50 / (side * STEP)},
        }
    }
    for name in ("st", "patches", "metadata", "thumbnails"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    spots.write_h5ad(folder / "st" / f"{section}.h5ad")
    patches = (color[:, None, None, :] + rng.normal(0, 6, (n, WINDOW, WINDOW, 3))).clip(0, 255).astype(np.uint8)
    order = rng.permutation(n)[without_patch:]
    names = [barcodes[i] for i in order] + [f"9{i:02d}x999" for i in range(without_spot)]
    images = np.concatenate([patches[order], patches[:without_spot]])
    with h5py.File(folder / "patches" / f"{section}.h5", "w") as file:
        file.create_dataset("img", data=images, chunks=(1, WINDOW, WINDOW, 3))
        file["img"].attrs.update(patch_size=WINDOW, patch_size_src=2 * WINDOW)
        file["coords"] = np.concatenate([centers[order], centers[:without_spot]]).astype(np.int64) - WINDOW
        file["barcode"] = np.array([name.encode() for name in names])[:, None]
    (folder / "thumbnails" / f"{section}.jpeg").write_bytes(b"not looked at")
    said = {
        "id": section, "patient": f"P{seed}", "dataset_title": "One study", "species": "Homo sapiens", "organ": "Breast",
        "st_technology": "Visium", "preservation_method": "FFPE", "license": "CC BY 4.0", "study_link": "https://example.org",
        "pixel_size_um_estimated": LEVEL0_MPP, "pixel_size_um_embedded": float("nan"), "spot_diameter": 55.0,
        "inter_spot_dist": 100.0,
    }  # fmt: skip
    (folder / "metadata" / f"{section}.json").write_text(json.dumps({**said, **(metadata or {})}))


def write_download(folder: Path) -> Path:
    """Write four sections of three patients."""
    write_section(folder, "TENX1", 1, without_patch=5, without_spot=2)
    fewer = [gene for gene in GENES if gene != "G05"]
    write_section(folder, "TENX2", 2, matrix="dense", genes=[*reversed(fewer), "EXTRA"])
    write_section(folder, "TENX3", 3, matrix="csc", metadata={"pixel_size_um_embedded": LEVEL0_MPP})
    write_section(folder, "TENX4", 4, metadata={"patient": "P3"})
    return folder
