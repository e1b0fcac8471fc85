"""`cohort.json`: what a prepared cohort holds, as checked data.

The manifest is written last, so a folder without it is not a cohort. It names every file with its size and SHA-256, and
no name in it can leave the folder.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field, model_validator

from stexpr.config import Stain, Strict, Unit, content_hash, validated
from stexpr.config.files import hash_file, write_whole
from stexpr.errors import ConfigError, DataError

MANIFEST = "cohort.json"
FORMAT = 2
"""Of what this stexpr reads; it writes 1 unless the cohort was adopted, so that an older stexpr reads the rest."""
INDEX = "index"
FOLDERS = ("st", "patches", "metadata", "qc", INDEX)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._ +-]*")


def _safe_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(
            "a section becomes a file name: letters, digits, '.', '_', '+', '-' and blanks, a letter or digit first"
        )
    return name


def _safe_path(text: str) -> str:
    parts = PurePosixPath(text).parts
    if len(parts) != 2 or parts[0] not in FOLDERS or not _NAME.fullmatch(parts[1]):
        raise ValueError(f"a file of a cohort lies in one of {', '.join(FOLDERS)}, with a plain name")
    return text


SectionName: TypeAlias = Annotated[str, AfterValidator(_safe_name)]
CohortPath: TypeAlias = Annotated[str, AfterValidator(_safe_path)]


class StoredFile(Strict):
    """Size and checksum of one file of a cohort."""

    bytes: int = Field(ge=0)
    sha256: str = Field(pattern="^[0-9a-f]{64}$")


class PreparedSection(Strict):
    """One section of a prepared cohort.

    Attributes:
        section: Name, unique in the cohort.
        patient: Whose tissue it is.
        n_spots: Spots kept.
        left_out: Spots left out, by reason; each spot under one reason.
        level0_mpp: Microns per pixel of the image that the spot centers refer to.
        mpp_source: How `level0_mpp` is known.
        content: Hash of the barcodes, centers, counts and patches themselves, so that it survives another HDF5 library.
        fingerprint: Hash of everything the section was made from; a re-run skips a section whose fingerprint is unchanged.
        files: Path below the cohort's folder -> size and checksum.
        notes: What a reader of results should know, such as patches that had to be upsampled.
    """

    section: SectionName
    patient: str
    n_spots: int = Field(ge=1)
    left_out: dict[str, int]
    level0_mpp: float = Field(gt=0)
    mpp_source: str
    content: str
    fingerprint: str
    files: dict[CohortPath, StoredFile]
    notes: tuple[str, ...] = ()

    @property
    def index(self) -> str | None:
        """The file that says which rows of the others are spots; None where all are, in one order."""
        name = index_file(self.section)
        return name if name in self.files else None

    @model_validator(mode="after")
    def _files_named(self) -> "PreparedSection":
        for needed in section_files(self.section)[:2]:
            if needed not in self.files:
                raise ValueError(f"section {self.section} lacks its file {needed}")
        return self


class CohortManifest(Strict):
    """A prepared cohort: where it comes from, how it was cut, and its sections in order.

    Attributes:
        format: 2 for a download that was adopted, 1 for what stexpr cut itself.
        sections_left_out: Sections of a download that could not be adopted, and why.
    """

    format: Literal[1, 2] = 1
    name: str
    species: str
    tissue: str
    preservation: str
    technology: str
    license: str
    citation: str
    library: str = Field(description="`whole` transcriptome, or a `subset` of it, which library sizes then refer to")
    gene_namespace: str
    spot_diameter_um: float | None
    spot_pitch_um: float | None
    mpp: float = Field(gt=0)
    window_px: int = Field(ge=1)
    stain: Stain
    stain_reference: str | None
    min_counts: int
    min_tissue: Unit
    n_genes: int = Field(ge=1)
    genes_left_out: dict[str, int]
    sections: tuple[PreparedSection, ...] = Field(min_length=1)
    sections_left_out: dict[str, str] = {}
    versions: dict[str, str]

    @model_validator(mode="after")
    def _sections_unique(self) -> "CohortManifest":
        check_section_names([entry.section for entry in self.sections])
        for entry in self.sections:
            if (entry.index is not None) != self.adopted:
                raise ValueError(f"format {self.format} contradicts section {entry.section}, which has an index or lacks one")
        return self

    @property
    def adopted(self) -> bool:
        """Whether the files are a download's, which stexpr must never change."""
        return self.format > 1

    @property
    def hash(self) -> str:
        """Identify what a study can see of this cohort; wording, software versions and QC pictures do not count."""
        sections = [entry.model_dump(include={"section", "patient", "level0_mpp", "content"}) for entry in self.sections]
        decisive = self.model_dump(include={"name", "mpp", "window_px", "stain", "stain_reference", "n_genes"})
        return content_hash({**decisive, "sections": sections})


def check_section_names(names: Sequence[str]) -> None:
    """Refuse names that cannot all be file names in one folder.

    Raises:
        ValueError: A name is no file name, or two are one on a disk that ignores case.
    """
    folded = [_safe_name(name).casefold() for name in names]
    twice = sorted({name for name in folded if folded.count(name) > 1})
    if twice:
        raise ValueError(f"section names must differ, also on disks that ignore case: {', '.join(twice)}")


def section_files(section: str) -> tuple[str, str, str, str]:
    """Name the four files of a section: counts, patches, metadata, QC picture."""
    return f"st/{section}.h5ad", f"patches/{section}.h5", f"metadata/{section}.json", f"qc/{section}.png"


def index_file(section: str) -> str:
    """Name the file that an adopted section has beside its own."""
    return f"{INDEX}/{section}.h5"


def read_manifest(folder: Path) -> CohortManifest:
    """Read `cohort.json` of a folder.

    Raises:
        DataError: The file is missing or unreadable, was written by a newer stexpr, or breaks a rule of the format.
    """
    path = folder / MANIFEST
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as err:
        raise DataError(f"{folder} is not a prepared cohort: it holds no {MANIFEST}; run stexpr prepare") from err
    except (OSError, ValueError) as err:
        raise DataError(f"{path} cannot be read ({err}); {_anew(folder)}") from err
    version = values.get("format") if isinstance(values, dict) else None
    if not isinstance(version, int) or version > FORMAT:
        raise DataError(f"{path} has format {version!r}, this stexpr reads up to {FORMAT}; install a newer stexpr")
    try:
        manifest = validated(CohortManifest, values, str(path))
    except ConfigError as err:
        raise DataError(f"{err}; {_anew(folder)}") from err
    assert isinstance(manifest, CohortManifest)
    return manifest


def _anew(folder: Path) -> str:
    """Say how to make a cohort anew, and never that a download be deleted."""
    if (folder / INDEX).is_dir():
        return f"delete {MANIFEST} alone and run stexpr prepare --adopt again"
    return "delete the folder and run stexpr prepare"


def write_manifest(folder: Path, manifest: CohortManifest) -> None:
    """Write `cohort.json`, whole or not at all."""
    later = {"sections_left_out"} if not manifest.adopted else set()  # a key that an older stexpr would refuse
    text = json.dumps(manifest.model_dump(mode="json", exclude=later), indent=1, ensure_ascii=False) + "\n"
    write_whole(folder / MANIFEST, lambda path: path.write_text(text, encoding="utf-8"))


def stored_file(path: Path) -> StoredFile:
    """Measure a file just written."""
    return StoredFile(bytes=path.stat().st_size, sha256=hash_file(path))


def damage(folder: Path, entry: PreparedSection, *, content: bool = False) -> str | None:
    """Say which file of a section is missing or has another size or, if asked, content; None if all are as recorded."""
    for name, recorded in entry.files.items():
        path = folder / name
        if not path.is_file():
            return f"section {entry.section} of {folder} lacks its file {name}"
        size = path.stat().st_size
        if size != recorded.bytes:
            return f"{path} has {size} bytes, the manifest says {recorded.bytes}"
        if content and hash_file(path) != recorded.sha256:
            return f"{path} was altered"
    return None
