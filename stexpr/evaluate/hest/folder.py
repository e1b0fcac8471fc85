"""The benchmark's folder: tasks, their folds, and the spots of a sample, checked before anything is computed.

BENCH_DIR/<task>/splits/train_<k>.csv, test_<k>.csv    columns sample_id, patches_path, expr_path
                 var_50genes.json                      {"genes": [...]}
                 patches/<sample>.h5                   img uint8 N x H x W x 3, barcode, coords
                 adata/<sample>.h5ad                   X raw counts
"""

import hashlib
import json
import posixpath
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from stexpr.errors import ConfigError, DataError, GeneError, LeakageError, nearest

__all__ = ["BenchFold", "BenchRow", "BenchSpots", "BenchTask", "find_tasks", "read_spots", "read_task"]

GENES: Final = "var_50genes.json"
SPLITS: Final = "splits"
COLUMNS: Final = ["sample_id", "patches_path", "expr_path"]
PATCH_PX: Final = 224
PATCH_UM: Final = 112.0
"""Side of the published patches in pixels and on the tissue; an early release had the same tissue in 256 px."""
_SPLIT = re.compile(r"(train|test)_(\d+)\.csv")
_EXAMPLES = 5


@dataclass(frozen=True)
class BenchRow:
    """One line of a split: a sample and its two files."""

    sample: str
    patches: Path
    expression: Path


@dataclass(frozen=True)
class BenchFold:
    """One partition of a task's samples."""

    index: int
    train: tuple[BenchRow, ...]
    test: tuple[BenchRow, ...]


@dataclass(frozen=True)
class BenchTask:
    """One task: its genes and its folds.

    Attributes:
        name: Name of its folder.
        genes: The 50 genes the benchmark scores, in its order.
        folds: Numbered from 0.
        sha256: Of the genes and the splits; equal hashes mean the same task.
        notes: Files that were left out.
    """

    name: str
    genes: tuple[str, ...]
    folds: tuple[BenchFold, ...]
    sha256: str
    notes: tuple[str, ...]

    @property
    def rows(self) -> tuple[BenchRow, ...]:
        """Every sample with its files, once, in order of appearance."""
        return tuple(dict.fromkeys(row for fold in self.folds for row in (*fold.train, *fold.test)))


@dataclass(frozen=True)
class BenchSpots:
    """Raw counts of the spots that have a patch, in the order of the patches.

    Attributes:
        genes: Columns of `counts`.
        counts: Spots x genes, as the file holds them.
        notes: What a reader of the score should know.
    """

    genes: tuple[str, ...]
    counts: sp.csr_matrix
    notes: tuple[str, ...]


def find_tasks(folder: Path, names: Sequence[str] | None = None) -> tuple[list[Path], list[str]]:
    """Find the task folders.

    Args:
        folder: The benchmark, or one task of it.
        names: Tasks to take, in this order; None takes all, by name.

    Returns:
        The folders of the tasks, and the names of other folders beside them (hidden ones apart).

    Raises:
        ConfigError: A task is named twice, or there is no such task; the nearest one is suggested.
        DataError: The folder is missing or holds no task.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give the folder of the HEST-Benchmark, or one task of it")
    if (folder / SPLITS).is_dir():
        found, others = {folder.resolve().name: folder}, []
    else:
        below = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        found = {path.name: path for path in below if (path / SPLITS).is_dir()}
        others = [path.name for path in below if path.name not in found]
    if not found:
        raise DataError(f"{folder} holds no task: neither it nor a folder in it has a folder {SPLITS}/")
    chosen = list(found) if names is None else list(names)
    if len(set(chosen)) < len(chosen) or not chosen:
        raise ConfigError(f"tasks are named once each, and at least one of them; got {', '.join(chosen) or 'none'}")
    for name in chosen:
        if name not in found:
            what = f"task {name} has no folder {SPLITS}/" if name in others else f"no task {name!r}"
            raise ConfigError(f"{what} in {folder}; {nearest(name, found)}")
    return [found[name] for name in chosen], others


def read_task(folder: Path) -> BenchTask:
    """Read a task's genes and splits, and check that every file they name is there.

    Paths of a split may not leave the task's folder by their letters; links inside it are followed, because the cache of
    huggingface_hub is made of them.

    Raises:
        DataError: A split lacks its other half, a column or a file, names a sample twice or a path outside the folder.
        GeneError: The list of genes is missing, empty or repeats one.
        LeakageError: A sample, or a file, is on both sides of a fold.
    """
    genes = _read_genes(folder / GENES)
    found: dict[str, dict[int, Path]] = {"train": {}, "test": {}}
    others = []
    for path in sorted((folder / SPLITS).iterdir()):
        if match := _SPLIT.fullmatch(path.name):
            found[match[1]][int(match[2])] = path
        elif not path.name.startswith("."):
            others.append(path.name)
    n = max(len(paths) for paths in found.values())
    if not n or any(set(paths) != set(range(n)) for paths in found.values()):
        held = " and ".join(f"{side} {sorted(paths) or 'none'}" for side, paths in found.items())
        raise DataError(f"{folder / SPLITS} holds {held}; it needs train_k.csv and test_k.csv for every k from 0")
    folds = []
    for k in range(n):
        sides = {side: _read_split(folder, paths[k]) for side, paths in found.items()}
        _refuse_leakage(folder, k, sides["train"], sides["test"])
        folds.append(BenchFold(k, sides["train"], sides["test"]))
    digest = hashlib.sha256("\n".join(genes).encode())
    for k in range(n):
        for side in ("train", "test"):
            digest.update(b"\0" + found[side][k].read_bytes())
    notes = (f"{SPLITS}/ of task {folder.name} also holds {', '.join(others)}, left out",) if others else ()
    return BenchTask(folder.resolve().name, genes, tuple(folds), digest.hexdigest(), notes)


def read_spots(row: BenchRow, genes: Sequence[str]) -> BenchSpots:
    """Read the counts of a sample and put them in the order of its patches.

    Raises:
        DataError: A file cannot be read, the patches are no square RGB images, their barcodes are repeated or not among
            the spots, or a count is negative or not finite.
        GeneError: A gene of the benchmark is missing, or a gene is there twice.
    """
    barcodes = _read_barcodes(row.patches)
    import anndata

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique", category=UserWarning)  # refused below
        try:
            spots = anndata.read_h5ad(row.expression)
        except Exception as err:  # anndata and h5py raise whatever their first failing line does
            raise DataError(f"cannot read {row.expression} as AnnData: {' '.join(str(err).split())[:200]}") from err
    if spots.X is None:
        raise DataError(f"{row.expression} has no X; the benchmark reads raw counts there")
    names = [str(name) for name in spots.var_names]
    for kind, held, error in (("gene", spots.var_names, GeneError), ("barcode", spots.obs_names, DataError)):
        if (twice := held[held.duplicated()]).size:
            raise error(f"{row.expression} has {twice.nunique()} {kind} names more than once, such as {twice[0]!r}")
    if lacking := sorted(set(genes) - set(names)):
        raise GeneError(f"{row.expression} lacks {len(lacking)} of the {len(genes)} genes of {GENES}: {_few(lacking)}")
    place = pd.Index(spots.obs_names.astype(str)).get_indexer(pd.Index(barcodes))
    if (place < 0).any():
        unknown = [barcode for barcode, i in zip(barcodes, place, strict=True) if i < 0]
        raise DataError(
            f"{len(unknown)} of the {len(barcodes)} patches of sample {row.sample} have a barcode that is none of the "
            f"{spots.n_obs} spots of {row.expression}: {_few(unknown)}"
        )
    counts = sp.csr_matrix(spots.X)[place]
    if not np.isfinite(counts.data).all() or (counts.data < 0).any():
        raise DataError(f"{row.expression} holds counts that are negative or not finite; the benchmark reads raw counts in X")
    notes = []
    if unseen := spots.n_obs - len(barcodes):
        notes.append(f"{unseen} of {spots.n_obs} spots of sample {row.sample} have no patch and are left out, as in HEST")
    if (counts.data % 1).any():
        notes.append(f"sample {row.sample} holds counts that are no whole numbers; their log1p is taken as in HEST")
    return BenchSpots(tuple(names), counts, tuple(notes))


def _read_genes(path: Path) -> tuple[str, ...]:
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as err:
        raise GeneError(f"cannot read {path} ({err.strerror}); the genes of a task stand there") from err
    except ValueError as err:
        raise GeneError(f"{path} is not JSON: {err}") from err
    genes = values.get("genes") if isinstance(values, dict) else None
    if not isinstance(genes, list) or not genes or not all(isinstance(gene, str) for gene in genes):
        raise GeneError(f'{path} must hold {{"genes": ["NAME", …]}} with at least one gene')
    if len(set(genes)) < len(genes):
        raise GeneError(f"{path} names {len(genes) - len(set(genes))} genes more than once")
    return tuple(genes)


def _read_split(folder: Path, path: Path) -> tuple[BenchRow, ...]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError) as err:  # pandas' own errors are ValueErrors
        raise DataError(f"cannot read {path}: {err}") from err
    if lacking := [column for column in COLUMNS if column not in table.columns]:
        raise DataError(f"{path} lacks the columns {', '.join(lacking)}; it has {', '.join(table.columns)}")
    if table.empty:
        raise DataError(f"{path} names no sample")
    rows = []
    for sample, patches, expression in table[COLUMNS].itertuples(index=False):
        if not sample:
            raise DataError(f"{path} has a line without sample_id")
        rows.append(BenchRow(sample, _inside(folder, patches, path), _inside(folder, expression, path)))
    if twice := _few(sorted(set(table["sample_id"][table["sample_id"].duplicated()]))):
        raise DataError(f"{path} names samples more than once: {twice}")
    return tuple(rows)


def _inside(folder: Path, value: str, split: Path) -> Path:
    relative = posixpath.normpath(value.replace("\\", "/"))
    if not value or posixpath.isabs(relative) or relative.split("/")[0] == ".." or Path(value).drive:
        raise DataError(f"{split} names the path {value!r}; a path must stay inside {folder}")
    path = folder / relative
    if not path.is_file():
        raise DataError(f"{split} names {value}, which is not in {folder}; download the task again")
    return path


def _refuse_leakage(folder: Path, k: int, train: Sequence[BenchRow], test: Sequence[BenchRow]) -> None:
    where = f"fold {k} of task {folder.resolve().name}"
    if both := sorted({row.sample for row in train} & {row.sample for row in test}):
        raise LeakageError(f"{where} has {len(both)} samples in training and test: {_few(both)}")
    files = [{path.resolve() for row in side for path in (row.patches, row.expression)} for side in (train, test)]
    if shared := sorted(path.name for path in files[0] & files[1]):
        raise LeakageError(
            f"{where} reads {len(shared)} files in training and test, under different sample_ids: {_few(shared)}"
        )


def _read_barcodes(path: Path) -> list[str]:
    try:
        with h5py.File(path, "r") as file:
            images = file.get("img")
            if images is None or images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
                held = "no img" if images is None else f"img {images.dtype} {images.shape}"
                raise DataError(f"{path} holds {held}; it needs img, uint8, patches x height x width x 3")
            shape = images.shape
            key = next((key for key in ("barcode", "barcodes") if key in file), None)
            values = [] if key is None else np.asarray(file[key]).ravel().tolist()
    except OSError as err:
        raise DataError(f"cannot read {path} as HDF5: {err}; download it again") from err
    if shape[1] != shape[2]:
        raise DataError(f"{path} holds patches of {shape[1]} x {shape[2]} px; they must be square")
    barcodes = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    if not barcodes or len(barcodes) != shape[0]:
        raise DataError(f"{path} holds {shape[0]} patches and {len(barcodes)} barcodes; it needs one for each, and some")
    if (repeated := len(barcodes) - len(set(barcodes))) > 0:
        raise DataError(f"{path} holds {repeated} barcodes more than once; each patch needs its own")
    return barcodes


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES]) + (", …" if len(names) > _EXAMPLES else "")
