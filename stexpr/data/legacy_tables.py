"""The two tables of a legacy Spatial Transcriptomics section: counts and spot positions."""

import gzip
import zlib
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float64

from stexpr.data.rasters import reason
from stexpr.errors import DataError, nearest

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_POSITIONS = ("x", "y", "pixel_x", "pixel_y")
_BROKEN = (OSError, EOFError, ValueError, zlib.error)


def read_counts(path: Path) -> tuple[list[str], list[str], sp.csr_matrix]:
    """Read a table of counts, spots x genes, row by row: a data frame of 20,000 columns is slow, and renames repeated genes.

    Raises:
        DataError: The file is truncated, empty, or holds something that is not a number.
    """
    genes: list[str] = []
    barcodes: list[str] = []
    rows: list[sp.csr_matrix] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            header = [name.strip('"') for name in file.readline().rstrip("\r\n").split("\t")]
            for line in file:
                if not line.strip():
                    continue
                barcode, *cells = line.rstrip("\r\n").split("\t")
                # R leaves the corner above the row names out, Python leaves it empty.
                genes = genes or header[len(header) - len(cells) :]
                if len(cells) != len(genes) or len(header) - len(genes) not in (0, 1):
                    raise DataError(
                        f"{path} is truncated or damaged: row {barcode!r} has {len(cells)} counts for {len(header)} columns; "
                        "fetch it again"
                    )
                barcodes.append(barcode.strip('"'))
                rows.append(sp.csr_matrix(_numbers(cells, path, barcode, genes)))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as err:
        raise DataError(f"{path} is truncated or not a table ({reason(err)}); fetch it again") from err
    if not rows:
        raise DataError(f"{path} is empty: it needs a header of genes and one row per spot")
    return barcodes, genes, sp.csr_matrix(sp.vstack(rows))


def _numbers(cells: list[str], path: Path, barcode: str, genes: list[str]) -> Float64[Array, "1 G"]:
    try:
        return np.array([cells], dtype=np.float64)
    except ValueError:
        for gene, cell in zip(genes, cells, strict=True):
            try:
                float(cell)
            except ValueError:
                raise DataError(
                    f"{path} has {cell!r} at spot {barcode}, gene {gene}; counts are whole numbers from 0"
                ) from None
        raise


def read_spots(path: Path) -> pd.DataFrame:
    """Read a table of spots: `x`, `y`, `pixel_x`, `pixel_y` and `selected` (1 for all if absent), all finite numbers.

    Raises:
        DataError: The file is truncated, or a column is missing or holds something else.
    """
    try:
        table = pd.read_csv(path, sep="\t")
    except pd.errors.EmptyDataError:
        raise DataError(f"{path} is empty: it needs the columns {', '.join(_POSITIONS)} and a row per spot") from None
    except _BROKEN as err:
        raise DataError(f"{path} is truncated or not a table ({reason(err)}); fetch it again") from err
    if missing := [name for name in _POSITIONS if name not in table.columns]:
        others = [str(name) for name in table.columns if name not in _POSITIONS]
        raise DataError(f"{path} has no column {missing[0]!r}; {nearest(missing[0], others)}")
    if "selected" not in table.columns:
        table["selected"] = 1
    for name in (*_POSITIONS, "selected"):
        values = pd.to_numeric(table[name], errors="coerce").to_numpy(dtype=np.float64)
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise DataError(
                f"{path}: {name} of row {row + 2} is {str(table[name].iloc[row])!r}, not a number; fetch the file again"
            )
        table[name] = values
    return table


def on_lattice(positions: Float64[Array, "S 2"], centers: Float64[Array, "S 2"]) -> Float64[Array, "S 2"]:
    """Move centers onto the lattice that their array coordinates span."""
    if len(positions) < 3:
        return centers
    design = np.column_stack([positions, np.ones(len(positions))])
    fitted: Float64[Array, "S 2"] = design @ np.linalg.lstsq(design, centers, rcond=None)[0]
    return fitted
