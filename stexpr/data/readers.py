"""File formats into `Section`s: one function per format, chosen by the `reader` of the card.

A reader joins counts with spot positions, says how it knows the pixel size, and counts what it leaves out. `read_section`
checks the result, so a further format is one function here and one line in `READERS`.
"""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float64

from stexpr.data.cards import DataCard, SectionEntry
from stexpr.data.images import SlideImage, open_image
from stexpr.data.legacy_tables import on_lattice, read_counts, read_spots
from stexpr.data.rasters import reason
from stexpr.data.section import Section, check_mpp, check_section, spot_pitch_px
from stexpr.errors import CardError, DataError, GeneError, ScaleError, nearest
from stexpr.types import PROVENANCE, SPATIAL

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Reader: TypeAlias = Callable[[SectionEntry, Path, DataCard], Section]

_ENSEMBL = re.compile(r"(ENS[A-Z]*\d{6,})(?:\.\d+)?(_PAR_Y)?")
_OUT_OF_INT32 = 2.0**31


def read_section(entry: SectionEntry, folder: Path, card: DataCard) -> Section:
    """Read one section and check it.

    Args:
        entry: The section on the card.
        folder: Where the cohort's files lie.
        card: The card; its `reader` names the format.

    Returns:
        The section, its image not yet decoded.

    Raises:
        CardError: The card names no reader, or an unknown one.
        DataError: A file is missing, truncated or not what the reader expects, or the section fails `check_section`.
        GeneError: Gene names are duplicated or of another namespace than the card says.
        ScaleError: The pixel size is unknown, absurd or contradictory.
    """
    if card.reader is None:
        raise CardError(f"card {card.name} names no reader: {card.access_note or 'stexpr cannot read its files yet'}")
    if card.reader not in READERS:
        raise CardError(f"card {card.name}: no reader {card.reader!r}; {nearest(card.reader, READERS)}")
    for name in (entry.counts, entry.spots, entry.image, card.symbol_table):
        if name is not None and not (folder / name).is_file():
            raise DataError(
                f"section {entry.section} of {card.name} lacks its file {folder / name}; "
                f"run `stexpr data fetch {card.name}` into this folder or correct the path on the card"
            )
    section = READERS[card.reader](entry, folder, card)
    check_section(section)
    return section


def read_legacy_st(entry: SectionEntry, folder: Path, card: DataCard) -> Section:
    """Read legacy Spatial Transcriptomics: a table of counts (rows such as `10x13`) and a table of spots.

    Both may be gzipped. The spot table has columns `x`, `y` (array coordinates, rounded to join), `pixel_x`, `pixel_y` and
    maybe `selected` (1 = under tissue). Spots that are not selected, or in one table only, are left out and counted.
    """
    if entry.spots is None:
        raise CardError(f"section {entry.section} of {card.name} needs `spots`, the table of spot positions")
    barcodes, genes, counts = read_counts(folder / entry.counts)
    table = read_spots(folder / entry.spots)
    keys = [f"{round(x)}x{round(y)}" for x, y in zip(table["x"], table["y"], strict=True)]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(f"{folder / entry.spots} has array position {twice} more than once; each spot needs its own")
    selected = dict(zip(keys, table["selected"] == 1, strict=True))
    kept = [i for i, barcode in enumerate(barcodes) if selected.get(barcode, False)]
    measured = set(barcodes)
    left_out = {
        "not selected": sum(not selected.get(barcode, True) for barcode in barcodes),
        "in counts but not in spot file": sum(barcode not in selected for barcode in barcodes),
        "in spot file but not in counts": sum(chosen and key not in measured for key, chosen in selected.items()),
    }
    if not measured & set(keys):
        raise DataError(
            f"counts and spots of section {entry.section} do not join: {entry.counts} has spots such as {barcodes[0]!r}, "
            f"{entry.spots} positions such as {keys[0]!r}; rows of the counts must be spots named like 10x13 (genes in columns)"
        )
    place = {key: i for i, key in enumerate(keys)}
    rows = [place[barcodes[i]] for i in kept]
    centers = table[["pixel_x", "pixel_y"]].to_numpy(dtype=np.float64) * entry.pixel_scale
    # Positions found on the image scatter around the printed lattice, so the nearest spot is nearer than the pitch.
    lattice = on_lattice(table[["x", "y"]].to_numpy(dtype=np.float64), centers)
    spots = _spots([barcodes[i] for i in kept], genes, counts[kept], centers[rows], folder, card)
    return _section(entry, folder, card, spots, left_out, lattice)


def read_h5ad_with_image(entry: SectionEntry, folder: Path, card: DataCard) -> Section:
    """Read an AnnData file and the image its spots lie on.

    Counts come from `layers["counts"]` if there is one, else from `X`; spot centers from `obsm["spatial"]`, in image
    pixels (after the entry's `pixel_scale`), x then y; `obs["in_tissue"]` is kept.
    """
    import anndata

    path = folder / entry.counts
    try:
        with _repeated_names_pass():
            file = anndata.read_h5ad(path)
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} is not an AnnData file that can be read ({reason(err)}); fetch or export it again") from err
    counts = file.layers.get("counts", file.X)
    if counts is None:
        raise DataError(f'{path} has neither layers["counts"] nor X; store raw counts in one of them')
    if SPATIAL not in file.obsm:
        raise DataError(f'{path} has no obsm["spatial"]; store spot centers there, in image pixels, x then y')
    centers = np.asarray(file.obsm[SPATIAL], dtype=np.float64)
    if centers.ndim != 2 or centers.shape[1] < 2:
        raise DataError(f'{path}: obsm["spatial"] has shape {centers.shape}, not spots x 2')
    centers = centers[:, :2] * entry.pixel_scale
    matrix = sp.csr_matrix(counts if sp.issparse(counts) else np.asarray(counts))
    in_tissue = file.obs.get("in_tissue")
    spots = _spots(list(map(str, file.obs_names)), list(map(str, file.var_names)), matrix, centers, folder, card)
    if in_tissue is not None:
        spots.obs["in_tissue"] = in_tissue.astype(str).str.lower().isin(["1", "1.0", "true"]).to_numpy()
    return _section(entry, folder, card, spots, {}, centers)


READERS: dict[str, Reader] = {"legacy_st": read_legacy_st, "h5ad": read_h5ad_with_image}
"""Formats by the name a card gives them."""


def _spots(
    barcodes: Sequence[str],
    genes: Sequence[str],
    counts: sp.csr_matrix,
    centers: Float64[Array, "S 2"],
    folder: Path,
    card: DataCard,
) -> Any:
    """Make the AnnData of a section; whole numbers become int32, anything else stays to be refused by the check."""
    import anndata

    names, notes = _gene_names(genes, folder, card)
    values = counts.data
    if values.size == 0 or (np.isfinite(values).all() and (values == np.round(values)).all() and values.max() < _OUT_OF_INT32):
        counts = counts.astype(np.int32)
    with _repeated_names_pass():
        return anndata.AnnData(
            X=counts,
            obs=pd.DataFrame({"in_tissue": np.ones(len(barcodes), dtype=bool)}, index=list(barcodes)),
            var=pd.DataFrame(index=names),
            obsm={SPATIAL: centers},
            uns={PROVENANCE: notes},
        )


@contextmanager
def _repeated_names_pass() -> Iterator[None]:
    """Quiet anndata's warning on names that stand twice: the check of the section refuses them, and says which."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique", category=UserWarning)
        yield


def _gene_names(genes: Sequence[str], folder: Path, card: DataCard) -> tuple[list[str], dict[str, int]]:
    """Strip Ensembl version suffixes, then rename by the card's table if it has one; names are never guessed."""
    matches = [_ENSEMBL.fullmatch(gene) for gene in genes]
    names = [match[1] + (match[2] or "") if match else gene for gene, match in zip(genes, matches, strict=True)]
    notes: dict[str, int] = {}
    if card.symbol_table is not None:
        table = _read_symbols(folder / card.symbol_table)
        renamed = [table.get(name, name) for name in names]
        notes = {
            "genes_renamed": sum(name in table for name in names),
            "genes_without_symbol": sum(n not in table for n in names),
        }
        names = renamed
    elif card.gene_namespace == "symbol" and sum(match is not None for match in matches) > len(genes) / 2:
        raise GeneError(
            f"card {card.name} says gene_namespace `symbol`, but most genes are Ensembl ids such as {genes[0]!r}; "
            "say `ensembl`, or name a symbol_table"
        )
    return names, notes


def _read_symbols(path: Path) -> dict[str, str]:
    try:
        table = pd.read_csv(path, sep=None, engine="python", dtype=str, keep_default_na=False)
    except (OSError, ValueError) as err:
        raise DataError(f"{path} is not a table ({reason(err)}); it needs two columns: gene and symbol") from err
    if table.shape[1] != 2:
        raise DataError(f"{path} has {table.shape[1]} columns, not two: the gene in the counts files and its symbol")
    pairs = {gene: symbol for gene, symbol in table.itertuples(index=False, name=None) if symbol}
    if len(set(pairs.values())) < len(pairs):
        symbols = list(pairs.values())
        twice = next(symbol for symbol in symbols if symbols.count(symbol) > 1)
        raise GeneError(f"{path} gives the symbol {twice!r} to more than one gene; keep one of them, the others keep their id")
    return pairs


def _section(
    entry: SectionEntry, folder: Path, card: DataCard, spots: Any, left_out: dict[str, int], lattice: Float64[Array, "S 2"]
) -> Section:
    image = open_image(folder / entry.image, blank=entry.blank, blank_below=entry.blank_below)
    mpp, source = _pixel_size(entry, image, lattice, card)
    return Section(
        name=entry.section,
        patient=entry.patient,
        spots=spots,
        image=image,
        mpp=mpp,
        mpp_source=source,
        gene_namespace=card.gene_namespace,
        left_out={reason: n for reason, n in left_out.items() if n},
        spot_diameter_um=card.spot_diameter_um,
        spot_pitch_um=card.spot_pitch_um,
    )


def _pixel_size(entry: SectionEntry, image: SlideImage, lattice: Float64[Array, "S 2"], card: DataCard) -> tuple[float, str]:
    """Take the pixel size from the card, else from the image file, else from the spot pitch; never guess.

    Raises:
        ScaleError: None of them says.
    """
    if entry.mpp is not None:
        check_mpp(entry.mpp, f"section {entry.section} of card {card.name}")
        other = f"; the image file says {image.mpp:.4g}" if image.mpp and abs(image.mpp - entry.mpp) > 0.02 * entry.mpp else ""
        return entry.mpp, f"card{': ' if entry.mpp_source else ''}{entry.mpp_source}{other}"
    if image.mpp is not None:
        return image.mpp, f"image file ({image.backend})"
    pitch_px = spot_pitch_px(lattice)
    if card.spot_pitch_um is None or pitch_px is None:
        why = "card has no spot_pitch_um" if card.spot_pitch_um is None else "section has too few spots to measure their pitch"
        raise ScaleError(
            f"section {entry.section}: microns per pixel are unknown: neither the card nor {entry.image} says, and the {why}; "
            "set mpp of the section on the card"
        )
    mpp = card.spot_pitch_um / pitch_px
    source = f"spot pitch ({card.spot_pitch_um:g} um / {pitch_px:.4g} px)"
    check_mpp(mpp, f"section {entry.section}, {source}")
    return mpp, source
