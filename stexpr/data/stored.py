"""What the files of one section of a prepared cohort hold, in the order a study sees it.

A cohort that stexpr cut has one order of spots and one gene axis in all its files. A download that was adopted has not: a
side file of ours, the index, then says which rows of its files are one spot, and on which genes the cohort stands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float64, Int

from stexpr.config.files import write_whole
from stexpr.data.hest import on_axis
from stexpr.data.manifest import PreparedSection, section_files
from stexpr.errors import DataError
from stexpr.types import SPATIAL

__all__ = ["AGAIN", "SectionIndex", "StoredSection", "open_h5", "read_index", "text_rows", "write_index"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

AGAIN: Final = "run stexpr prepare again"
LEFT_OUT: Final = "left_out"
_TEXT: Final = h5py.string_dtype()


@dataclass(frozen=True)
class SectionIndex:
    """Which rows of a section's files are its spots, and the cohort's gene axis.

    Attributes:
        barcodes: The spots, in order.
        spot_rows: Their rows in `st/`.
        patch_rows: Their rows in `patches/`.
        library: Their counts over every gene of the file, also those off the axis.
        genes: The gene axis; a gene the file lacks has 0 counts.
        n_patches: Patches in the file.
        patch_px: Their side.
        left_out: Barcodes left out, by reason.
    """

    barcodes: tuple[str, ...]
    spot_rows: Int[Array, "S"]
    patch_rows: Int[Array, "S"]
    library: Float64[Array, "S"]
    genes: tuple[str, ...]
    n_patches: int
    patch_px: int
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)


class StoredSection:
    """One section on disk.

    Attributes:
        entry: What the manifest says of it.
        counts_path: Its AnnData file.
        patches_path: Its patches.
        index: Which rows are its spots; None where all are, in one order.
    """

    def __init__(self, folder: Path, entry: PreparedSection) -> None:
        self.entry = entry
        self.counts_path, self.patches_path = (folder / name for name in section_files(entry.section)[:2])
        self.index = None if entry.index is None else read_index(folder / entry.index)
        if self.index is not None and len(self.index.barcodes) != entry.n_spots:
            held = f"{folder / str(entry.index)} names {len(self.index.barcodes)} spots"
            raise DataError(f"{held}, the manifest says {entry.n_spots}; {AGAIN}")

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """The gene axis, as this section knows it."""
        if self.index is not None:
            return self.index.genes
        with open_h5(self.counts_path) as file:
            return tuple(text_rows(file["var"]))

    @cached_property
    def library(self) -> Float64[Array, "S"]:
        """Counts of each spot over every gene of the file."""
        if self.index is not None:
            return self.index.library
        with open_h5(self.counts_path) as file:
            return np.asarray(file["obs"]["library"][:], dtype=np.float64)

    def counts(self, n_genes: int) -> sp.csr_matrix:
        """Read raw counts, spots x genes of the axis.

        Raises:
            DataError: The file holds another shape than the manifest says.
        """
        with open_h5(self.counts_path) as file:
            if self.index is None:
                return _csr(file, (self.entry.n_spots, n_genes))
            counts = _any_matrix(file)
            return on_axis(counts[self.index.spot_rows], text_rows(file["var"]), self.index.genes)

    def spots(self) -> pd.DataFrame:
        """Read one row per spot: index `barcode`, columns `x_px`, `y_px`, `library`, `tissue_fraction` (NaN where unknown)."""
        with open_h5(self.counts_path) as file:
            centers = np.asarray(file["obsm"][SPATIAL][:], dtype=np.float64)
            if self.index is None:
                barcodes: Sequence[str] = text_rows(file["obs"])
                tissue = np.asarray(file["obs"]["tissue_fraction"][:], dtype=np.float64)
            else:
                barcodes, centers = self.index.barcodes, centers[self.index.spot_rows]
                tissue = np.full(len(barcodes), np.nan)
        columns = {"x_px": centers[:, 0], "y_px": centers[:, 1], "library": self.library, "tissue_fraction": tissue}
        return pd.DataFrame(columns, index=pd.Index(list(barcodes), name="barcode"))


def read_index(path: Path) -> SectionIndex:
    """Read what `write_index` wrote.

    Raises:
        DataError: It is no such file.
    """
    with open_h5(path) as file:
        try:
            return SectionIndex(
                barcodes=tuple(file["barcode"].asstr()[:]),
                spot_rows=file["spot_row"][:],
                patch_rows=file["patch_row"][:],
                library=file["library"][:],
                genes=tuple(file["gene"].asstr()[:]),
                n_patches=int(file.attrs["n_patches"]),
                patch_px=int(file.attrs["patch_px"]),
                left_out={reason: tuple(rows.asstr()[:]) for reason, rows in file[LEFT_OUT].items()},
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise DataError(f"{path} is no index of a section ({err!r}); {AGAIN}") from err


def write_index(path: Path, index: SectionIndex) -> None:
    """Write an index, whole or not at all."""

    def write(part: Path) -> None:
        with h5py.File(part, "w") as file:
            file.attrs.update(n_patches=index.n_patches, patch_px=index.patch_px)
            for key, names in (("barcode", index.barcodes), ("gene", index.genes)):
                file.create_dataset(key, data=list(names), dtype=_TEXT, compression="gzip")
            for key, rows in (("spot_row", index.spot_rows), ("patch_row", index.patch_rows), ("library", index.library)):
                file.create_dataset(key, data=rows, compression="gzip")
            group = file.create_group(LEFT_OUT)
            for reason, names in index.left_out.items():
                group.create_dataset(reason, data=list(names), dtype=_TEXT, compression="gzip")

    write_whole(path, write, needs=40 * (len(index.barcodes) + len(index.genes)))


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        DataError: The file is missing or no HDF5 file.
    """
    try:
        return h5py.File(path, "r")
    except OSError as err:
        raise DataError(f"cannot read {path} as HDF5 ({err}); {AGAIN}") from err


def text_rows(frame: Any) -> list[str]:
    """Read the row names of a table that AnnData wrote."""
    values = frame[frame.attrs["_index"]]
    if isinstance(values, h5py.Group):  # an encoding younger than plain strings
        from anndata.io import read_elem

        return [str(value) for value in read_elem(values)]
    if values.dtype.kind in "iuf":
        return [str(value) for value in values[:]]
    return [str(value) for value in values.asstr()[:]]


def _csr(file: Any, shape: tuple[int, int]) -> sp.csr_matrix:
    X = file["X"]
    if X.attrs.get("encoding-type") != "csr_matrix" or tuple(X.attrs["shape"]) != shape:
        raise DataError(f"{file.filename} holds X as {dict(X.attrs)}, expected csr_matrix {shape}; {AGAIN}")
    return sp.csr_matrix((X["data"][:], X["indices"][:], X["indptr"][:]), shape=shape)


def _any_matrix(file: Any) -> sp.csr_matrix:
    X = file["X"]
    if isinstance(X, h5py.Dataset):
        return sp.csr_matrix(X[:])
    make = sp.csc_matrix if X.attrs.get("encoding-type") == "csc_matrix" else sp.csr_matrix
    return sp.csr_matrix(make((X["data"][:], X["indices"][:], X["indptr"][:]), shape=tuple(X.attrs["shape"])))
