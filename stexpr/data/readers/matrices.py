"""Feature-barcode matrices of 10x Genomics: an HDF5 file, or a folder of three text files."""

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stexpr.data.cards import Matrix
from stexpr.data.rasters import reason
from stexpr.data.readers.assembly import is_ensembl, unversioned
from stexpr.data.readers.folder import existing
from stexpr.data.section import GeneNamespace
from stexpr.errors import DataError, GeneError

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

GENES = "Gene Expression"
"""The type of the features that are genes; antibodies, guides and controls have others."""
_BROKEN = (OSError, EOFError, KeyError, ValueError, RuntimeError, IndexError, OverflowError, zlib.error)


@dataclass(frozen=True)
class Features:
    """The features of a matrix, in its order."""

    ids: tuple[str, ...]
    symbols: tuple[str, ...]
    types: tuple[str, ...]


@dataclass(frozen=True)
class FeatureMatrix:
    """Counts with the names of their rows and columns.

    Attributes:
        path: The file or folder.
        barcodes: An Arrow array of strings: a Visium HD matrix has millions.
        features: Of the columns.
        counts: Barcodes x features.
    """

    path: Path
    barcodes: Any
    features: Features
    counts: sp.csr_matrix


def find_matrix(folder: Path, which: Matrix | None) -> Path:
    """Find a matrix of Space Ranger; where nobody says which, the filtered one before the raw one, HDF5 before text.

    Raises:
        DataError: There is none.
    """
    names = [f"{kind}_feature_bc_matrix" for kind in ([which] if which else ["filtered", "raw"])]
    return existing([folder / f"{name}{end}" for name in names for end in (".h5", "")], "a matrix of counts", folder)


def matrix_files(path: Path) -> list[Path]:
    """List the files of a matrix: the HDF5 file, or features, barcodes and counts of a folder.

    Raises:
        DataError: One is missing.
    """
    return [path] if path.suffix == ".h5" else [_features_file(path), *(_text(path, n) for n in ("barcodes.tsv", "matrix.mtx"))]


def read_matrix(path: Path) -> FeatureMatrix:
    """Read a matrix, an HDF5 file or a folder.

    Raises:
        DataError: It is truncated, or no such matrix.
    """
    try:
        matrix = _read_h5(path) if path.suffix == ".h5" else _read_text(path)
    except DataError:
        raise
    except _BROKEN as err:
        raise DataError(f"{path} is truncated or no feature-barcode matrix ({reason(err)}); copy it again") from err
    shape = (len(matrix.barcodes), len(matrix.features.ids))
    if matrix.counts.shape != shape:
        raise DataError(
            f"{path} is damaged: {matrix.counts.shape[0]} x {matrix.counts.shape[1]} counts for {shape[0]} barcodes x "
            f"{shape[1]} features; copy it again"
        )
    return matrix


def read_features(path: Path) -> Features:
    """Read the features of a matrix without its counts.

    Raises:
        DataError: It is truncated, or no such matrix.
    """
    try:
        if path.suffix != ".h5":
            return _read_features_table(_features_file(path))
        with h5py.File(path) as file:
            return _read_features_h5(file)
    except _BROKEN as err:
        if isinstance(err, DataError):
            raise
        raise DataError(f"{path} is truncated or no feature-barcode matrix ({reason(err)}); copy it again") from err


def genes_of(matrix: FeatureMatrix) -> tuple[Features, sp.csr_matrix, dict[str, int]]:
    """Keep the features that are genes.

    Returns:
        They, their counts, and how many others were left out, by type.

    Raises:
        DataError: None is a gene.
    """
    kept = [i for i, kind in enumerate(matrix.features.types) if kind == GENES]
    others = dict(Counter(kind for kind in matrix.features.types if kind != GENES))
    if not kept:
        raise DataError(f"{matrix.path} has no feature of type {GENES!r}, only {others or 'none at all'}; give another matrix")
    if not others:
        return matrix.features, matrix.counts, {}
    ids, symbols, types = matrix.features.ids, matrix.features.symbols, matrix.features.types
    genes = Features(tuple(ids[i] for i in kept), tuple(symbols[i] for i in kept), tuple(types[i] for i in kept))
    return genes, sp.csr_matrix(matrix.counts[:, kept]), others


def gene_table(
    ids: Sequence[str], symbols: Sequence[str], namespace: GeneNamespace | None, where: Path
) -> tuple[pd.DataFrame, GeneNamespace, dict[str, int]]:
    """Name genes by id or by symbol; the other stands beside it.

    Args:
        ids: As the file gives them; version suffixes of Ensembl ids are stripped.
        symbols: As the file gives them.
        namespace: What the names shall be; None takes Ensembl ids where most ids are, else the ids as they are.
        where: The file, for the message.

    Returns:
        One row per gene, with `symbol` (or `gene_id`) as a column; what the names are; and the number of genes that keep
        their id because their symbol is empty or another gene's too.

    Raises:
        GeneError: Ensembl ids are wanted and most ids are something else.
    """
    plain = unversioned(ids)
    n_ensembl = sum(map(is_ensembl, ids))
    chosen: GeneNamespace = namespace or ("ensembl" if 2 * n_ensembl > len(ids) else "other")
    if chosen == "ensembl" and 2 * n_ensembl <= len(ids):
        raise GeneError(
            f"{where} has {n_ensembl} Ensembl ids among its {len(ids)} genes, such as {ids[0]!r}; "
            "say gene_namespace: symbol or other"
        )
    if chosen != "symbol":
        return pd.DataFrame({"symbol": list(symbols)}, index=plain), chosen, {}
    times = Counter(symbols)
    unclear = [not symbol or times[symbol] > 1 for symbol in symbols]
    names = [gene if keeps else symbol for gene, symbol, keeps in zip(plain, symbols, unclear, strict=True)]
    notes = {"genes_without_symbol": sum(unclear)} if any(unclear) else {}
    return pd.DataFrame({"gene_id": plain}, index=names), chosen, notes


def _read_h5(path: Path) -> FeatureMatrix:
    import pyarrow as pa

    with h5py.File(path) as file:
        group = file["matrix"]
        features = _read_features_h5(file)
        barcodes = pa.array(group["barcodes"][()].astype("S")).cast(pa.string())
        data, indices, indptr = (group[name][()] for name in ("data", "indices", "indptr"))
        n_features, n_barcodes = map(int, group["shape"][()])
    # Stored by columns, one per barcode: read by rows, it is the transposed matrix.
    counts = sp.csr_matrix((data, indices, indptr), shape=(n_barcodes, n_features))
    counts.check_format(full_check=True)
    return FeatureMatrix(path, barcodes, features, counts)


def _read_features_h5(file: h5py.File) -> Features:
    group = file["matrix/features"]
    return Features(*(tuple(group[name].asstr()[()]) for name in ("id", "name", "feature_type")))


def _read_text(folder: Path) -> FeatureMatrix:
    import pyarrow as pa
    from scipy.io import mmread

    features = _read_features_table(_features_file(folder))
    barcodes = pd.read_csv(_text(folder, "barcodes.tsv"), sep="\t", header=None, dtype=str, usecols=[0])[0]
    counts = mmread(_text(folder, "matrix.mtx"))
    return FeatureMatrix(folder, pa.array(barcodes.tolist(), pa.string()), features, sp.csr_matrix(counts.T))


def _features_file(folder: Path) -> Path:
    names = ("features.tsv.gz", "features.tsv", "genes.tsv.gz", "genes.tsv")
    return existing([folder / name for name in names], "the names of its features", folder)


def _text(folder: Path, name: str) -> Path:
    return existing([folder / f"{name}.gz", folder / name], f"its {name}", folder)


def _read_features_table(path: Path) -> Features:
    table = pd.read_csv(path, sep="\t", header=None, dtype=str, keep_default_na=False)
    if table.shape[1] < 2:
        raise DataError(f"{path} has {table.shape[1]} column, not an id and a symbol per feature; copy it again")
    types = table[2] if table.shape[1] > 2 else [GENES] * len(table)
    return Features(tuple(table[0]), tuple(table[1]), tuple(types))
