"""Data cards: what a cohort is, where its files are and how to read them, as a page with checked front matter.

A card is a Markdown file that opens with YAML between two lines of `---`. The cards that come with stexpr describe
published cohorts; a card of one's own data has the same format and needs seven fields (see `DataCard`).
"""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Annotated, Any, Literal, TypeAlias

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr, model_validator

from stexpr.config import PrepareConfig, Strict, resource_folder, validated
from stexpr.data.manifest import SectionName
from stexpr.data.section import AbsentGenes, GeneNamespace
from stexpr.errors import CardError, ConfigError, nearest

HEADINGS = ("Motivation", "Collection", "Known limits", "Splits")
"""What the page of a published cohort must tell below its front matter."""
NOT_STATED = "not stated"
FolderKind: TypeAlias = Literal["space_ranger", "visium_hd", "xenium"]
Matrix: TypeAlias = Literal["filtered", "raw"]
FOLDER_OPTIONS: dict[str, tuple[str, ...]] = {
    "space_ranger": ("matrix",),
    "visium_hd": ("matrix", "bin_um"),
    "xenium": ("pseudo_spot_um", "alignment"),
}
"""Readers of whole output folders, and the fields of a section that only they know."""
_NEEDED = {"visium_hd": ("bin_um", "bins of 16"), "xenium": ("pseudo_spot_um", "squares of 55")}
_FRONT = re.compile(r"\A---\s*\n(.*?)\n---\s*(?:\n|\Z)(.*)", re.DOTALL)


def _inside(text: str) -> str:
    """Refuse a path that could leave the folder of the cohort's files."""
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if not text or posix.is_absolute() or windows.drive or windows.root or "\\" in text or ".." in posix.parts or "\0" in text:
        raise ValueError("a path on a card is relative and stays inside the cohort's folder: no '..', no '/' first, no '\\'")
    return text


def _quoted(value: Any) -> Any:
    """YAML reads 007 as the number 7: a name that is not a string may not be what was written."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise ValueError(f"put names that look like numbers into quotes: '{value}'")
    return value


InnerPath: TypeAlias = Annotated[str, AfterValidator(_inside)]
Name: TypeAlias = Annotated[str, BeforeValidator(_quoted), Field(min_length=1)]


class SectionEntry(Strict):
    """One section on a card: its files (`counts`, `spots`, `image`), or the `folder` an instrument's software wrote."""

    section: Annotated[SectionName, BeforeValidator(_quoted)]
    patient: Name
    counts: InnerPath | None = Field(None, description="file of counts, below the folder of the cohort's files")
    spots: InnerPath | None = Field(None, description="file of spot positions, for readers that need one")
    image: InnerPath | None = Field(None, description="the H&E image; a `folder` may hold one of its own")
    folder: InnerPath | None = Field(None, description="output folder of Space Ranger or a Xenium Analyzer")
    matrix: Matrix | None = Field(None, description="which matrix of Space Ranger; null takes filtered, else raw")
    bin_um: int | None = Field(None, ge=2, description="side of a Visium HD spot: a bin of the folder or a multiple of one")
    pseudo_spot_um: float | None = Field(None, gt=0, description="side of the squares that Xenium transcripts are pooled into")
    alignment: InnerPath | None = Field(None, description="CSV with the 3 x 3 matrix from H&E pixels to Xenium pixels")
    mpp: float | None = Field(
        None, gt=0, description="microns per image pixel; null takes the image file's or the spot pitch's"
    )
    mpp_source: str = Field("", description="how mpp is known")
    pixel_scale: float = Field(1.0, gt=0, description="position in the spot file x pixel_scale = image pixel")
    blank: tuple[tuple[int, int, int, int], ...] = Field((), description="image rectangles x0, y0, x1, y1 that are not tissue")
    blank_below: int | None = Field(None, ge=0, le=255, description="image pixels no channel of which is above this are blank")

    @model_validator(mode="after")
    def _rectangles_open(self) -> "SectionEntry":
        for x0, y0, x1, y1 in self.blank:
            if x0 >= x1 or y0 >= y1:
                raise ValueError(f"blank rectangle [{x0}, {y0}, {x1}, {y1}] is not x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        return self

    @model_validator(mode="after")
    def _files_or_folder(self) -> "SectionEntry":
        if (self.counts is None) == (self.folder is None):
            raise ValueError("name either `counts`, a file, or `folder`, the output of an instrument's software, and not both")
        if self.folder is None and self.image is None:
            raise ValueError("`image` is missing: with `counts`, the card names the H&E image")
        return self


class CardFile(Strict):
    """One file of a cohort and how to tell that it is whole."""

    path: InnerPath
    url: str | None = Field(None, pattern=r"^https?://")
    sha256: str | None = Field(None, pattern=r"^[0-9a-f]{64}$")
    bytes: int | None = Field(None, ge=0)


class DataCard(Strict):
    """The front matter of a card.

    A card of one's own cohort needs `name`, `species`, `tissue`, `technology`, `gene_namespace`, `reader` and `sections`
    (each with `section`, `patient`, and `counts` and `image`, or `folder`, and what its reader needs).

    Attributes:
        n_patients: Of the cohort as published; the card may list the files of fewer.
        n_sections: As above.
        n_spots: As above.
        library: Whether the files hold the `whole` transcriptome or a `subset` of genes.
        absent_genes: What a gene that some sections lack means; see `stexpr.data.section.join_genes`.
        access: `open`, or the reason why stexpr does not download the files; `access_note` says what to do then.
        reader: Format of the files; null while stexpr has no reader for them.
        prepare: Settings of `stexpr prepare` unless told otherwise.
        symbol_table: CSV file with two columns, the gene in the counts files and its name; without one, names stay.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), BeforeValidator(_quoted)]
    title: str = ""
    license: str = NOT_STATED
    license_url: str | None = None
    citation: str = NOT_STATED
    doi: str | None = None
    species: str
    tissue: str
    disease: str | None = None
    preservation: str = NOT_STATED
    technology: str
    spot_diameter_um: float | None = Field(None, gt=0)
    spot_pitch_um: float | None = Field(None, gt=0)
    n_patients: int | None = Field(None, ge=1)
    n_sections: int | None = Field(None, ge=1)
    n_spots: int | None = Field(None, ge=1)
    gene_namespace: GeneNamespace
    library: Literal["whole", "subset"] = "whole"
    absent_genes: AbsentGenes = "refuse"
    access: Literal["open", "license_bound", "gated", "generated"] = "open"
    access_note: str = ""
    reader: str | None
    sections: tuple[SectionEntry, ...]
    files: tuple[CardFile, ...] = ()
    prepare: PrepareConfig | None = None
    symbol_table: InnerPath | None = None

    _prose: str = PrivateAttr("")

    @property
    def prose(self) -> str:
        """The page below the front matter."""
        return self._prose

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients of the sections listed, in order of appearance."""
        return tuple(dict.fromkeys(entry.patient for entry in self.sections))

    @model_validator(mode="after")
    def _consistent(self) -> "DataCard":
        for label, names in (("section", [e.section for e in self.sections]), ("file", [f.path for f in self.files])):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise ValueError(f"{label} {twice[0]!r} is listed more than once")
        if self.access != "open" and not self.access_note:
            raise ValueError(f"access `{self.access}` needs access_note, which tells what the user must do")
        for label, total, listed in (
            ("n_sections", self.n_sections, len(self.sections)),
            ("n_patients", self.n_patients, len(self.patients)),
        ):
            if total is not None and total < listed:
                raise ValueError(f"{label} is {total}, but the card lists {listed}")
        return self

    @model_validator(mode="after")
    def _fields_fit_the_reader(self) -> "DataCard":
        if self.reader is None:
            return self
        of_folders = self.reader in FOLDER_OPTIONS
        for entry in self.sections:
            if (entry.folder is not None) != of_folders:
                raise ValueError(
                    f"section {entry.section}: reader `{self.reader}` needs `{'folder' if of_folders else 'counts'}`; "
                    f"`folder` goes with {', '.join(FOLDER_OPTIONS)}"
                )
            allowed = FOLDER_OPTIONS.get(self.reader, ())
            for option in sorted(set().union(*FOLDER_OPTIONS.values())):
                if getattr(entry, option) is not None and option not in allowed:
                    raise ValueError(f"section {entry.section}: `{option}` is not for reader `{self.reader}`")
            needed, example = _NEEDED.get(self.reader, ("section", ""))
            if getattr(entry, needed) is None:
                raise ValueError(f"section {entry.section}: reader `{self.reader}` needs `{needed}`, such as {example} um")
        if of_folders and self.symbol_table is not None:
            raise ValueError("a folder names its genes' symbols itself: leave symbol_table out and say gene_namespace: symbol")
        return self


def list_cards() -> list[DataCard]:
    """Read the cards that come with stexpr, by name."""
    return [load_card(path) for path in sorted(resource_folder("data_cards").glob("*.md"))]


def load_card(name_or_path: str | Path) -> DataCard:
    """Read a card: one that comes with stexpr by name, or any file by path.

    Args:
        name_or_path: A name such as `mob`, or a path such as `my_cohort.md`.

    Raises:
        CardError: There is no such card, or its front matter is not what a card needs; file and field are named.

    Example:
        >>> load_card("mob").species
        'Mus musculus'
    """
    path = _find(name_or_path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise CardError(f"card {path} cannot be read: {err}") from err
    parts = _FRONT.match(text)
    if parts is None:
        raise CardError(f"card {path} does not open with YAML between two lines of ---; data_cards/mob.md is an example")
    try:
        values = yaml.safe_load(parts[1])
    except yaml.YAMLError as err:
        raise CardError(f"the front matter of card {path} is not YAML: {' '.join(str(err).split())}") from err
    if not isinstance(values, dict):
        raise CardError(f"the front matter of card {path} holds {type(values).__name__}, not keys and values")
    try:
        card = validated(DataCard, values, str(path))
    except ConfigError as err:
        raise CardError(str(err)) from err
    assert isinstance(card, DataCard)
    card._prose = parts[2].strip()
    return card


def missing_headings(card: DataCard) -> list[str]:
    """Name the headings that the page of a published cohort needs and this one lacks or leaves empty."""
    bodies = dict(re.findall(r"^## (.+?)\s*\n(.*?)(?=^## |\Z)", card.prose, re.MULTILINE | re.DOTALL))
    return [heading for heading in HEADINGS if not bodies.get(heading, "").strip()]


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.is_file():
        return path
    folder = resource_folder("data_cards")
    own = folder / f"{path.name.removesuffix('.md')}.md"
    if str(path) == path.name and own.is_file():
        return own
    raise CardError(
        f"no data card {str(name_or_path)!r}, neither a file nor one of stexpr's; "
        f"{nearest(path.stem, (card.stem for card in folder.glob('*.md')))}"
    )
