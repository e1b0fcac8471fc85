"""Files into `Section`s: one function per format, chosen by the `reader` of the card, or by what a folder holds.

A reader joins counts with spot positions, says how it knows the pixel size, and counts what it leaves out. `read_section`
checks the result, so a further format is one function in a module here and one line in `READERS`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from stexpr.data.cards import FOLDER_OPTIONS, DataCard, FolderKind, Matrix, SectionEntry
from stexpr.data.readers.folder import FolderRequest, detect_kind, outs_of, request_of_card
from stexpr.data.readers.h5ad import read_h5ad_with_image
from stexpr.data.readers.legacy import read_legacy_st
from stexpr.data.readers.space_ranger import read_space_ranger, space_ranger_files
from stexpr.data.readers.visium_hd import read_visium_hd, visium_hd_files
from stexpr.data.readers.xenium import read_xenium, xenium_files
from stexpr.data.section import GeneNamespace, Section, check_section
from stexpr.errors import CardError, ConfigError, DataError, nearest

__all__ = ["READERS", "FolderKind", "input_files", "read_folder", "read_section"]

Reader: TypeAlias = Callable[[SectionEntry, Path, DataCard], Section]

_FOLDERS: dict[str, tuple[Callable[[FolderRequest], Section], Callable[[FolderRequest], list[Path]]]] = {
    "space_ranger": (read_space_ranger, space_ranger_files),
    "visium_hd": (read_visium_hd, visium_hd_files),
    "xenium": (read_xenium, xenium_files),
}


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
    input_files(entry, folder, card)
    section = READERS[card.reader](entry, folder, card)
    check_section(section)
    return section


def input_files(entry: SectionEntry, folder: Path, card: DataCard) -> list[Path]:
    """List the files that a section is read from, all of them there; of an output folder, only those that are read.

    Raises:
        DataError: One is missing.
    """
    named = [folder / name for name in (entry.counts, entry.spots, entry.image, entry.alignment, card.symbol_table) if name]
    for path in named:
        if not path.is_file():
            raise DataError(
                f"section {entry.section} of patient {entry.patient} lacks its file {path}; "
                f"run `stexpr data fetch {card.name}` into this folder or correct the path on the card"
            )
    if card.reader not in _FOLDERS:
        return named
    return list(dict.fromkeys([*named, *_FOLDERS[card.reader][1](request_of_card(entry, folder, card))]))


def read_folder(
    folder: str | Path,
    *,
    kind: FolderKind | None = None,
    image: str | Path | None = None,
    section: str | None = None,
    patient: str | None = None,
    mpp: float | int | None = None,
    gene_namespace: GeneNamespace | None = None,
    matrix: Matrix | None = None,
    bin_um: int | None = None,
    pseudo_spot_um: float | int | None = None,
    alignment: str | Path | None = None,
) -> Section:
    """Read the output folder of Space Ranger (Visium, Visium HD) or of a Xenium Analyzer, without a card.

    Args:
        folder: The folder (`outs`, or the one above it).
        kind: What it is; None looks.
        image: The H&E that the positions refer to. None takes the folder's own: for Visium the coarse
            `tissue_hires_image.png`, which is noted; for Xenium its `*_he_image.ome.tif`.
        section: Name of the section; None takes the folder's.
        patient: Whose tissue it is; None takes the section's name.
        mpp: Microns per pixel of the image; None takes the folder's word. Either is checked against the other.
        gene_namespace: What `var_names` are: `ensembl` (the symbols then stand in `var["symbol"]`) or `symbol`. None takes
            Ensembl ids where the folder gives them.
        matrix: Which matrix of Space Ranger; None takes the filtered one, or the raw one where it is absent.
        bin_um: Visium HD: side of a spot, a bin size of the folder or a multiple of one; needed.
        pseudo_spot_um: Xenium: side of the squares that transcripts are pooled into; needed.
        alignment: Xenium: CSV file with the matrix from H&E pixels to Xenium pixels; None takes the one beside the image.

    Returns:
        The section, checked, its image not yet decoded.

    Raises:
        ConfigError: An option is missing, or belongs to another kind of folder.
        DataError: The folder is none of these, or a file is missing, truncated or does not fit the others.
        ScaleError: The pixel size is absurd, or what the folder, the image and the caller say contradicts.

    Example:
        >>> from stexpr.data.readers import read_folder
        >>> section = read_folder("sample1/outs", image="sample1.tif")  # doctest: +SKIP
    """
    root = outs_of(Path(folder))
    found = kind or detect_kind(root)
    if found not in _FOLDERS:
        raise ConfigError(f"no kind of folder {found!r}; {nearest(found, _FOLDERS)}")
    options = {"matrix": matrix, "bin_um": bin_um, "pseudo_spot_um": pseudo_spot_um, "alignment": alignment}
    for option, value in options.items():
        if value is not None and option not in FOLDER_OPTIONS[found]:
            raise ConfigError(f"{option} is not for a folder of kind {found}, which {root} is")
        if isinstance(value, int | float) and not value > 0:
            raise ConfigError(f"{option} is {value:g}; it is a length in um, above 0")
    name = section or (root.parent.name if root.name == "outs" else root.name) or root.resolve().name
    request = FolderRequest(
        folder=root, section=name, patient=patient or name, image=_path(image), mpp=None if mpp is None else float(mpp),
        gene_namespace=gene_namespace, matrix=matrix, bin_um=bin_um, alignment=_path(alignment), mpp_source="given",
        pseudo_spot_um=None if pseudo_spot_um is None else float(pseudo_spot_um),
    )  # fmt: skip
    made = _FOLDERS[found][0](request)
    check_section(made)
    return made


def _path(name: str | Path | None) -> Path | None:
    return None if name is None else Path(name)


def _of_folder(entry: SectionEntry, folder: Path, card: DataCard) -> Section:
    """Read a section that is an output folder."""
    assert card.reader is not None
    return _FOLDERS[card.reader][0](request_of_card(entry, folder, card))


READERS: dict[str, Reader] = {
    "legacy_st": read_legacy_st,
    "h5ad": read_h5ad_with_image,
    **dict.fromkeys(_FOLDERS, _of_folder),
}
"""Formats by the name a card gives them."""
