"""Xenium transcripts into squares: read in batches, so that memory grows with the squares and not with the file."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
from jaxtyping import Int64

from stexpr.data.rasters import reason
from stexpr.errors import DataError, nearest

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MIN_QUALITY = 20.0
"""Calls below this Phred-like value are what Xenium's own matrices leave out."""
LOW_QUALITY = f"quality value below {MIN_QUALITY:g}"
GENE_CATEGORIES = ("predesigned_gene", "custom_gene")
CONTROLS = {
    "negcontrolprobe": "negative control probe",
    "negcontrolcodeword": "negative control codeword",
    "antisense": "antisense probe",
    "blank": "blank codeword",
    "unassignedcodeword": "unassigned codeword",
    "deprecatedcodeword": "deprecated codeword",
    "intergenic_region": "genomic control probe",
    "genomiccontrol": "genomic control probe",
}
"""How the names of features that are no genes begin, in any version of the instrument's software, in lower case."""
_COLUMNS = ("feature_name", "x_location", "y_location", "qv")
_MAYBE = ("codeword_category", "is_gene")
_BATCH = 1 << 18
_BITS = 21
_HALF = 1 << (_BITS - 1)


@dataclass
class PooledTranscripts:
    """Counts of genes in squares.

    Attributes:
        genes: In order of first appearance.
        squares: Column and row of each square that holds a transcript; square (0, 0) begins at the origin.
        counts: Squares x genes.
        total: Transcripts in the file.
        left_out: Transcripts left out, by reason; each under one. With those in `counts` they make up `total`.
    """

    genes: list[str]
    squares: Int64[Array, "S 2"]
    counts: sp.csr_matrix
    total: int
    left_out: dict[str, int]


def pool_transcripts(
    path: Path, side_um: float, *, kinds: Mapping[str, str] | None = None, batch: int = _BATCH
) -> PooledTranscripts:
    """Count the transcripts of each gene in each square.

    Controls are left out first, by kind, then calls of a quality value below 20.

    Args:
        path: `transcripts.parquet`.
        side_um: Side of a square.
        kinds: Features known to be no genes, and what they are, where neither name nor category tell.
        batch: Rows read at a time.

    Raises:
        DataError: The file is truncated, lacks a column, or has a position that is not on a slide.
    """
    pool = _Pool(kinds or {})
    for names, positions, quality, categories in _batches(path, batch):
        index = np.floor(positions / side_um)
        if not (np.abs(index) < _HALF).all():  # NaN too
            raise DataError(
                f"{path} has a transcript at {positions[~(np.abs(index) < _HALF).all(axis=1)][0].tolist()} um, which is on no "
                "slide; copy the file again"
            )
        pool.add(names, index.astype(np.int64), quality, categories)
    return pool.result()


@dataclass
class _Pool:
    """What is counted so far: one sorted key per square and gene."""

    kinds: Mapping[str, str]
    genes: dict[str, int] = field(default_factory=dict)
    left_out: Counter[str] = field(default_factory=Counter)
    total: int = 0
    keys: Int64[Array, "K"] = field(default_factory=lambda: np.zeros(0, np.int64))
    n: Int64[Array, "K"] = field(default_factory=lambda: np.zeros(0, np.int64))
    fresh: list[tuple[Array, Array]] = field(default_factory=list)

    def add(self, names: Any, index: Array, quality: Array, categories: Any) -> None:
        self.total += len(names)
        reasons, code = self._reasons(names, categories)
        gene = reasons == ""
        for kind, n in zip(*np.unique(reasons[~gene], return_counts=True), strict=True):
            self.left_out[str(kind)] += int(n)
        good = quality >= MIN_QUALITY
        self.left_out[LOW_QUALITY] += int((gene & ~good).sum())
        kept = gene & good
        square = (index[kept, 1] + _HALF) << _BITS | (index[kept, 0] + _HALF)
        self.fresh.append(np.unique(square << _BITS | code[kept], return_counts=True))
        if sum(len(keys) for keys, _ in self.fresh) > max(len(self.keys), _BATCH):
            self._merge()

    def _reasons(self, names: Any, categories: Any) -> tuple[Array, Int64[Array, "N"]]:
        """Say of every transcript why it is no gene (empty: it is one), and number its gene."""
        encoded = names.dictionary_encode()
        texts = encoded.dictionary.to_pylist()
        kinds = [control_kind(text) or self.kinds.get(text, "") for text in texts]
        place = encoded.indices.to_numpy(zero_copy_only=False)
        reasons = np.array(kinds, dtype=object)[place]
        if categories is not None:
            words = categories.dictionary_encode()
            known = [
                "" if word in (*GENE_CATEGORIES, None) else word.replace("_", " ") for word in words.dictionary.to_pylist()
            ]
            by_category = np.array([*known, ""], dtype=object)[words.indices.fill_null(len(known)).to_numpy()]
            reasons = np.where(reasons == "", by_category, reasons)
        present = np.unique(place[reasons == ""])
        for i in present:
            self.genes.setdefault(texts[i], len(self.genes))
        codes = np.array([self.genes.get(text, 0) for text in texts], dtype=np.int64)
        return reasons, codes[place]

    def _merge(self) -> None:
        keys = np.concatenate([self.keys, *(keys for keys, _ in self.fresh)])
        n = np.concatenate([self.n, *(n for _, n in self.fresh)])
        self.keys, inverse = np.unique(keys, return_inverse=True)
        self.n = np.bincount(inverse.reshape(-1), n, len(self.keys)).astype(np.int64)
        self.fresh = []

    def result(self) -> PooledTranscripts:
        self._merge()
        mask = (1 << _BITS) - 1
        squares, rows = np.unique(self.keys >> _BITS, return_inverse=True)
        counts = sp.csr_matrix((self.n, (rows.reshape(-1), self.keys & mask)), (len(squares), len(self.genes)))
        place = np.column_stack([squares & mask, squares >> _BITS]) - _HALF
        left_out = {why: n for why, n in sorted(self.left_out.items()) if n}
        return PooledTranscripts(list(self.genes), place, counts, self.total, left_out)


def control_kind(name: str) -> str:
    """Say what a feature is by its name; empty for a gene.

    Example:
        >>> control_kind("NegControlProbe_00042")
        'negative control probe'
        >>> control_kind("EPCAM")
        ''
    """
    folded = name.lower()
    for beginning, kind in CONTROLS.items():
        rest = folded.removeprefix(beginning)
        if rest != folded and (not rest or not rest[0].isalpha()):  # a gene may begin so, but goes on with a letter
            return kind
    return ""


def _batches(path: Path, batch: int) -> Iterator[tuple[Any, Array, Array, Any]]:
    """Yield names, positions (um), quality values and categories of a file, part by part."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            present = file.schema_arrow.names
            for name in _COLUMNS:
                if name not in present:
                    raise DataError(f"{path} has no column {name!r}; {nearest(name, present)}")
            columns = [*_COLUMNS, *(name for name in _MAYBE if name in present)]
            for part in file.iter_batches(batch_size=batch, columns=columns):
                names = _text(part["feature_name"])
                if names.null_count:
                    raise DataError(f"{path} has a transcript without feature_name; copy the file again")
                axes = [part[name].to_numpy(zero_copy_only=False).astype(np.float64) for name in ("x_location", "y_location")]
                quality = part["qv"].to_numpy(zero_copy_only=False).astype(np.float64)
                categories = _text(part["codeword_category"]) if "codeword_category" in columns else None
                if "is_gene" in columns:
                    told = categories if categories is not None else pa.nulls(len(part), pa.string())
                    genes = pc.or_(part["is_gene"].fill_null(True), pc.invert(pc.is_null(told)))
                    categories = pc.if_else(genes, told, pa.scalar("not a gene"))
                yield names, np.column_stack(axes), quality, categories
    except (OSError, pa.ArrowException) as err:
        raise DataError(f"{path} is truncated or no table of transcripts ({reason(err)}); copy it again") from err


def _text(column: Any) -> Any:
    """Bring a column of text to strings: the first versions of the software store bytes, others a dictionary."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.string())
