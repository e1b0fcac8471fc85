"""What every reader ends with: genes named, counts and centers in an AnnData, the image opened, the pixel size known."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float64

from stexpr.data.cards import DataCard, SectionEntry
from stexpr.data.images import SlideImage, open_image
from stexpr.data.rasters import reason
from stexpr.data.section import Section, check_mpp, spot_pitch_px
from stexpr.errors import CardError, DataError, GeneError, ScaleError
from stexpr.types import PROVENANCE, SPATIAL

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_ENSEMBL = re.compile(r"(ENS[A-Z]*\d{6,})(?:\.\d+)?(_PAR_Y)?")
_OUT_OF_INT32 = 2.0**31


def spots_of_card(
    barcodes: Sequence[str],
    genes: Sequence[str],
    counts: sp.csr_matrix,
    centers: Float64[Array, "S 2"],
    folder: Path,
    card: DataCard,
) -> Any:
    """Make the AnnData of a section whose genes are named as the card says."""
    names, notes = _gene_names(genes, folder, card)
    return make_spots(barcodes, pd.DataFrame(index=names), counts, centers, notes=notes)


def make_spots(
    barcodes: Sequence[str],
    genes: pd.DataFrame,
    counts: sp.csr_matrix,
    centers: Float64[Array, "S 2"],
    *,
    notes: dict[str, Any],
) -> Any:
    """Make the AnnData of a section; whole numbers become int32, anything else stays to be refused by the check.

    Args:
        barcodes: Of the spots.
        genes: One row per gene, named by its index.
        counts: Spots x genes.
        centers: Level-0 px, x then y.
        notes: Kept in `uns`.
    """
    import anndata

    values = counts.data
    if values.size == 0 or (np.isfinite(values).all() and (values == np.round(values)).all() and values.max() < _OUT_OF_INT32):
        counts = counts.astype(np.int32)
    with repeated_names_pass():
        return anndata.AnnData(
            X=counts,
            obs=pd.DataFrame({"in_tissue": np.ones(len(barcodes), dtype=bool)}, index=list(barcodes)),
            var=genes,
            obsm={SPATIAL: centers},
            uns={PROVENANCE: notes},
        )


@contextmanager
def repeated_names_pass() -> Iterator[None]:
    """Quiet anndata's warning on names that stand twice: the check of the section refuses them, and says which."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* names are not unique", category=UserWarning)
        yield


def unversioned(genes: Sequence[str]) -> list[str]:
    """Strip the version suffix of Ensembl ids; other names stay."""
    matches = [_ENSEMBL.fullmatch(gene) for gene in genes]
    return [match[1] + (match[2] or "") if match else gene for gene, match in zip(genes, matches, strict=True)]


def section_of_card(
    entry: SectionEntry, folder: Path, card: DataCard, spots: Any, left_out: dict[str, int], lattice: Float64[Array, "S 2"]
) -> Section:
    """Open the image and find the pixel size of a section that a card describes by its files.

    Args:
        entry: The section on the card.
        folder: Where the cohort's files lie.
        card: The card.
        spots: Counts and centers.
        left_out: Spots left out, by reason.
        lattice: Centers as the array prints them, for the spot pitch.
    """
    image = open_image(folder / named_file(entry, "image"), blank=entry.blank, blank_below=entry.blank_below)
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


def named_file(entry: SectionEntry, what: str) -> str:
    """Return a file of an entry that its reader cannot do without.

    Raises:
        CardError: The entry does not name it.
    """
    name: str | None = getattr(entry, what)
    if name is None:
        raise CardError(f"section {entry.section} needs `{what}`, a file below the folder of the cohort's files")
    return name


def _gene_names(genes: Sequence[str], folder: Path, card: DataCard) -> tuple[list[str], dict[str, int]]:
    """Strip Ensembl version suffixes, then rename by the card's table if it has one; names are never guessed."""
    names = unversioned(genes)
    notes: dict[str, int] = {}
    if card.symbol_table is not None:
        table = _read_symbols(folder / card.symbol_table)
        renamed = [table.get(name, name) for name in names]
        notes = {
            "genes_renamed": sum(name in table for name in names),
            "genes_without_symbol": sum(n not in table for n in names),
        }
        names = renamed
    elif card.gene_namespace == "symbol" and sum(map(is_ensembl, genes)) > len(genes) / 2:
        raise GeneError(
            f"card {card.name} says gene_namespace `symbol`, but most genes are Ensembl ids such as {genes[0]!r}; "
            "say `ensembl`, or name a symbol_table"
        )
    return names, notes


def is_ensembl(gene: str) -> bool:
    """Whether a name is an Ensembl gene id, with or without its version."""
    return _ENSEMBL.fullmatch(gene) is not None


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
