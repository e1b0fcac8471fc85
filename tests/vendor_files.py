"""The files in output folders of 10x Genomics' software, as the real ones are: names, types, dimensions, attributes."""

import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
import scipy.sparse as sp

HIRES_PX, LOWRES_PX = 300, 90  # 2,000 to 6,000 and 600 in the real ones


def write_matrix_h5(
    path: Path, barcodes: Sequence[str], features: tuple[list[str], ...], counts: sp.csr_matrix, *, probes: bool = False
) -> None:
    """Write a feature-barcode matrix as HDF5: sparse, by columns of barcodes."""
    ids, symbols, types = features
    with h5py.File(path, "w") as file:
        file.attrs.update({"chemistry_description": "Visium V4", "filetype": "matrix", "version": 2})
        file.attrs["library_ids"], file.attrs["original_gem_groups"] = np.array(["s1"], dtype="S"), np.array([1])
        group = file.create_group("matrix")
        pairs = {
            "data": counts.data.astype("<i4"),
            "indices": counts.indices.astype("<i8"),
            "indptr": counts.indptr.astype("<i8"),
        }
        for name, values in pairs.items():
            group.create_dataset(name, data=values, chunks=(80_000,), maxshape=(None,), compression="gzip", shuffle=True)
        group["shape"] = np.array([len(ids), len(barcodes)], dtype="<i4")
        group["barcodes"] = np.array(barcodes, dtype="S")
        place = group.create_group("features")
        place["_all_tag_keys"] = np.array(["genome"], dtype="S")
        place["id"], place["name"] = np.array(ids, dtype="S"), np.array(symbols, dtype="S")
        place["feature_type"], place["genome"] = np.array(types, dtype="S"), np.array(["GRCh38"] * len(ids), dtype="S")
        if probes:
            place.create_group("target_sets")["Visium Human Transcriptome Probe Set"] = np.arange(len(ids))


def write_matrix_folder(
    folder: Path, barcodes: Sequence[str], features: tuple[list[str], ...], counts: sp.csr_matrix, *, legacy: bool = False
) -> None:
    """Write a feature-barcode matrix as three text files, features x barcodes, gzipped unless `legacy` (`genes.tsv`)."""
    folder.mkdir()
    text = io.BytesIO()
    scipy.io.mmwrite(
        text, counts.T.tocoo(), field="integer", symmetry="general", comment='metadata_json: {"format_version": 2}'
    )
    rows = ["\t".join(row[: 2 if legacy else 3]) for row in zip(*features, strict=True)]
    contents = {
        "matrix.mtx": text.getvalue(),
        "genes.tsv" if legacy else "features.tsv": "".join(f"{row}\n" for row in rows).encode(),
        "barcodes.tsv": "".join(f"{barcode}\n" for barcode in barcodes).encode(),
    }
    for name, content in contents.items():
        path = folder / name
        path.write_bytes(content) if legacy else path.with_name(f"{name}.gz").write_bytes(gzip.compress(content))


def write_transcripts(path: Path, names: Any, category: Any, um: Any, quality: Any, version: int, row_group: int) -> None:
    """Write `transcripts.parquet` with the columns and types of a version of the software."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    n = len(names)
    columns = {
        "transcript_id": pa.array(np.arange(n, dtype=np.uint64)),
        "cell_id": pa.array(["UNASSIGNED"] * n),
        "overlaps_nucleus": pa.array(np.zeros(n, np.uint8)),
        "feature_name": pa.array([name.encode() for name in names]) if version == 1 else pa.array(list(names)),
        "x_location": pa.array(um[:, 0]),
        "y_location": pa.array(um[:, 1]),
        "z_location": pa.array(np.full(n, 12, np.float32)),
        "qv": pa.array(quality),
    }
    if version > 1:
        columns |= {"codeword_category": pa.array(list(category)), "is_gene": pa.array(category == "predesigned_gene")}
    pq.write_table(pa.table(columns), path, row_group_size=row_group)


def write_spatial(spatial: Path, image: Any, factors: dict[str, float]) -> None:
    """Write the scale factors and the two small images of a `spatial` folder."""
    from PIL import Image

    picture = Image.fromarray(image)
    for name, size in (("hires", HIRES_PX), ("lowres", LOWRES_PX)):
        scale = size / max(picture.size)
        small = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BOX)
        small.save(spatial / f"tissue_{name}_image.png")
        factors = factors | {f"tissue_{name}_scalef": scale}
    (spatial / "scalefactors_json.json").write_text(json.dumps(factors))


def write_tiff(path: Path, image: Any, mpp: float | None, *, ome: bool = False) -> None:
    """Write an image with its pixel size, in the tags or as OME."""
    import tifffile

    options: dict[str, Any] = {"photometric": "rgb", "compression": "zlib"}
    if ome:
        size = {"PhysicalSizeX": mpp, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": mpp, "PhysicalSizeYUnit": "µm"}
        options |= {"ome": True, "tile": (128, 128), "metadata": {"axes": "YXS", **size}}
    elif mpp is not None:
        options |= {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(path, np.ascontiguousarray(image), **options)
