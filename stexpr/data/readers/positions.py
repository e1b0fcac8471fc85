"""The `spatial` folder of Space Ranger: where the barcodes lie, the scale factors, and the image they refer to."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from stexpr.data.images import SlideImage, open_image
from stexpr.data.rasters import reason
from stexpr.data.readers.folder import FolderRequest, existing
from stexpr.errors import CardError, DataError, ScaleError, nearest

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

POSITION_COLUMNS = ("barcode", "in_tissue", "array_row", "array_col", "pxl_row_in_fullres", "pxl_col_in_fullres")
"""In the order of Space Ranger 1, whose file has no header; others are read by name."""
_POSITIONS = ("tissue_positions.parquet", "tissue_positions.csv", "tissue_positions_list.csv")
_HIRES = "tissue_hires_image.png"
_CYTASSIST = "cytassist_image.tiff"
_SIZE_TOLERANCE = 0.01


@dataclass(frozen=True)
class Positions:
    """Where barcodes lie, measured or not.

    Attributes:
        path: The file.
        barcodes: An Arrow array of strings.
        in_tissue: According to Space Ranger.
        grid: Row and column on the array.
        centers: x then y, full-resolution px.
    """

    path: Path
    barcodes: Any
    in_tissue: Bool[Array, "N"]
    grid: Int64[Array, "N 2"]
    centers: Float64[Array, "N 2"]

    def rows_of(self, barcodes: Any, where: Path) -> Int64[Array, "S"]:
        """Find the positions of barcodes.

        Raises:
            DataError: One has none.
        """
        import pyarrow.compute as pc

        rows = pc.index_in(barcodes, value_set=self.barcodes)
        if rows.null_count:
            absent = pc.filter(barcodes, pc.is_null(rows))
            raise DataError(
                f"{rows.null_count} of {len(barcodes)} barcodes of {where} have no position in {self.path.name}, such as "
                f"{absent[0].as_py()!r} (positions are of barcodes such as {self.barcodes[0].as_py()!r}); counts and positions "
                "must come from one run of Space Ranger"
            )
        return np.asarray(rows.to_numpy(), dtype=np.int64)


def positions_file(spatial: Path) -> Path:
    """Find the file of positions.

    Raises:
        DataError: There is none.
    """
    return existing([spatial / name for name in _POSITIONS], "the positions of its barcodes", spatial)


def read_positions(spatial: Path) -> Positions:
    """Read the positions of a `spatial` folder, by name where the file names its columns.

    Raises:
        DataError: The file is missing, truncated or lacks a column, a value is not a number, or a barcode stands twice.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    path = positions_file(spatial)
    try:
        table = _read_parquet(path) if path.suffix == ".parquet" else _read_csv(path)
    except (OSError, ValueError, pa.ArrowException) as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"{path} is truncated or no table of positions ({reason(err)}); copy it again") from err
    values = {name: _numbers(path, table[name], name) for name in POSITION_COLUMNS[1:]}
    if not np.isin(values["in_tissue"], (0, 1)).all():
        raise DataError(f"{path}: in_tissue is neither 0 nor 1 in some rows; copy the file again")
    barcodes = table["barcode"]
    if not len(barcodes):
        raise DataError(f"{path} is empty; copy it again")
    if len(pc.unique(barcodes)) < len(barcodes) or barcodes.null_count:
        raise DataError(f"{path} has a barcode more than once, or a row without one; each position needs its own")
    return Positions(
        path=path,
        barcodes=barcodes,
        in_tissue=values["in_tissue"] == 1,
        grid=np.column_stack([values["array_row"], values["array_col"]]).astype(np.int64),
        centers=np.column_stack([values["pxl_col_in_fullres"], values["pxl_row_in_fullres"]]),
    )


def scale_factors_file(spatial: Path) -> Path:
    """Find the scale factors.

    Raises:
        DataError: There are none.
    """
    return existing([spatial / "scalefactors_json.json"], "its scale factors", spatial)


def read_scale_factors(spatial: Path) -> dict[str, float]:
    """Read the numbers in `scalefactors_json.json`.

    Raises:
        DataError: The file is missing or not JSON.
        ScaleError: A number in it is not above 0.
    """
    path = scale_factors_file(spatial)
    factors = read_json(path)
    numbers = {key: float(value) for key, value in factors.items() if isinstance(value, int | float)}
    for key, value in numbers.items():
        if not (np.isfinite(value) and value > 0):
            raise ScaleError(f"{path}: {key} is {value:g}, not a number above 0; copy the file again")
    return numbers


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: It is none, or the file is truncated.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(f"{path} is truncated or not JSON ({reason(err)}); copy it again") from err
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, not keys and values; copy it again")
    return values


def image_file(request: FolderRequest, spatial: Path) -> Path:
    """Return the image of a request, or the small one in the folder.

    Raises:
        DataError: Neither is there.
    """
    return request.image or existing([spatial / _HIRES], "an image; name the full-resolution one, or copy", spatial)


def choose_image(request: FolderRequest, spatial: Path, factors: dict[str, float]) -> tuple[SlideImage, float, tuple[str, ...]]:
    """Open the image of a section: the one given, else the folder's small one.

    Returns:
        The image, its pixels per full-resolution pixel of the positions, and what to note.

    Raises:
        CardError: A `pixel_scale` without an image.
        DataError: The image is not of the size of the one the positions refer to, such as CytAssist's own picture.
    """
    factor = factors.get("tissue_hires_scalef")
    image = request.open_image(image_file(request, spatial))
    if request.image is not None:
        if factor is not None and (spatial / _HIRES).is_file():
            _check_size(request, image, spatial / _HIRES, factor)
        return image, request.pixel_scale, ()
    if request.pixel_scale != 1:
        raise CardError(f"section {request.section}: pixel_scale belongs to an image, and none is named")
    if factor is None:
        raise DataError(f"{scale_factors_file(spatial)} lacks tissue_hires_scalef; name the full-resolution image")
    note = f"cut from {_HIRES}, {1 / factor:.3g} times coarser than the full-resolution image, which was not given"
    return image, factor, (note,)


def lattice_steps_px(positions: Positions, steps: tuple[tuple[int, int], ...]) -> Float64[Array, "K"]:
    """Measure steps on the array in full-resolution px, by the affine map that fits all positions best.

    Args:
        positions: All of the array, or enough of it to span a plane.
        steps: Rows and columns of each step.

    Raises:
        DataError: The positions are no lattice: half of them are further from it than a quarter of the step.
        ScaleError: They span no plane, so nothing can be measured.
    """
    design = np.column_stack([positions.grid, np.ones(len(positions.grid))]).astype(np.float64)
    fitted, _, rank, _ = np.linalg.lstsq(design, positions.centers, rcond=None)
    if rank < 3:
        raise ScaleError(f"{positions.path} holds too few positions to measure their pitch; give mpp")
    lengths: Array = np.linalg.norm(np.asarray(steps, dtype=np.float64) @ fitted[:2], axis=1)
    off = np.linalg.norm(design @ fitted - positions.centers, axis=1)
    if not np.median(off) <= lengths.min() / 4:
        raise DataError(
            f"{positions.path}: its pixels do not follow its array rows and columns ({np.median(off):.4g} px off a lattice of "
            f"{lengths.min():.4g} px); columns may be swapped, copy the file again"
        )
    return lengths


def _check_size(request: FolderRequest, image: SlideImage, hires: Path, factor: float) -> None:
    with open_image(hires) as small:
        expected = (small.width / factor * request.pixel_scale, small.height / factor * request.pixel_scale)
    slack = 1 + 2 / factor * request.pixel_scale  # a side of the small image is a whole number
    pairs = zip(expected, (image.width, image.height), strict=True)
    if all(abs(ours - theirs) <= _SIZE_TOLERANCE * ours + slack for ours, theirs in pairs):
        return
    hint = f"; {_CYTASSIST} is not it, the microscope's image is" if image.path.name == _CYTASSIST else ""
    raise DataError(
        f"section {request.section}: {image.path.name} is {image.width} x {image.height} px, but the positions refer to an "
        f"image of about {expected[0]:.0f} x {expected[1]:.0f} px{hint}; give the one Space Ranger got, or say pixel_scale"
    )


def _read_parquet(path: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        _need_columns(path, file.schema_arrow.names)
        table = file.read(columns=list(POSITION_COLUMNS)).combine_chunks()
    columns: dict[str, Any] = {name: table[name].to_numpy() for name in POSITION_COLUMNS[1:]}
    return {"barcode": table["barcode"].cast(pa.string()).combine_chunks(), **columns}


def _read_csv(path: Path) -> dict[str, Any]:
    import pyarrow as pa

    with path.open(encoding="utf-8") as file:
        named = file.readline().split(",")[0].strip().strip('"').lower() == "barcode"
    table = pd.read_csv(path, header=0 if named else None, dtype={0: str, "barcode": str})
    if named:
        _need_columns(path, list(map(str, table.columns)))
    elif table.shape[1] != len(POSITION_COLUMNS):
        raise DataError(f"{path} has {table.shape[1]} columns and no header; without one it has {', '.join(POSITION_COLUMNS)}")
    else:
        table.columns = pd.Index(POSITION_COLUMNS)
    columns = {name: pd.to_numeric(table[name], errors="coerce").to_numpy() for name in POSITION_COLUMNS[1:]}
    return {"barcode": pa.array(table["barcode"].tolist(), pa.string(), from_pandas=True), **columns}


def _need_columns(path: Path, names: list[str]) -> None:
    for name in POSITION_COLUMNS:
        if name not in names:
            raise DataError(f"{path} has no column {name!r}; {nearest(name, names)}")


def _numbers(path: Path, values: Array, name: str) -> Float64[Array, "N"]:
    numbers: Array = np.asarray(values, dtype=np.float64)
    if not np.isfinite(numbers).all():
        row = int(np.argmin(np.isfinite(numbers)))
        raise DataError(f"{path}: {name} of row {row + 1} is not a number; the file is truncated or damaged, copy it again")
    return numbers
