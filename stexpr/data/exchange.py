"""A section in the formats of others: what they have no place for travels as words beside the data.

Counts, barcodes, genes, positions, columns and pixels go where a format keeps them. Name, patient, pixel size and how it is
known go into `uns["stexpr"]["section"]` as JSON, so that a section comes back as it went.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from jaxtyping import UInt8
from pydantic import Field, ValidationError

from stexpr.config import Strict
from stexpr.data.images import ArrayImage, SlideImage, open_image
from stexpr.data.section import GeneNamespace, Section, check_outline
from stexpr.errors import DataError, ScaleError
from stexpr.types import PROVENANCE, SPATIAL

if TYPE_CHECKING:
    from anndata import AnnData
else:
    AnnData = Any

__all__ = ["GIVEN", "Found", "SectionWords", "as_section", "assemble", "packed", "read_anndata", "unpack"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

SECTION: Final = "section"
GIVEN: Final = ("section", "patient", "mpp", "gene_namespace")
"""What a caller may say of a section, over the words beside the data."""
_DIFFERS: Final = 0.02


class SectionWords(Strict):
    """What a format has no place for; see `Section`.

    Attributes:
        image: Name of the image file beside the data.
        added: Columns of `obs` that the format needed and the section does not have.
    """

    name: str
    patient: str
    mpp: float = Field(gt=0)
    mpp_source: str
    gene_namespace: GeneNamespace
    left_out: dict[str, int] = {}
    spot_diameter_um: float | None = None
    spot_pitch_um: float | None = None
    notes: tuple[str, ...] = ()
    image: str | None = None
    added: tuple[str, ...] = ()

    @classmethod
    def of(cls, section: Section, **more: Any) -> "SectionWords":
        """Take the words of a section."""
        own = {key: getattr(section, key) for key in cls.model_fields if key not in ("image", "added")}
        return cls(**own, **more)


@dataclass(frozen=True)
class Found:
    """What is known of a section beside its spots and image, in the order of trust.

    Attributes:
        name: What it is called if neither its words nor the caller say.
        given: The caller's own word, by the names of `GIVEN`; None where silent.
        words: What stexpr wrote beside it.
        mpp: Microns per pixel as the format itself says it, by where it says so.
    """

    name: str
    given: Mapping[str, Any] = field(default_factory=dict)
    words: SectionWords | None = None
    mpp: Mapping[str, float] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the section that the format has a place for."""


def as_section(
    spots: "Section | AnnData",
    image: SlideImage | UInt8[Array, "H W 3"] | str | Path | None,
    mpp: float | None,
) -> Section:
    """Take a section, or make one of an AnnData and its image.

    Args:
        spots: The section, or raw counts with `obsm["spatial"]` in pixels of the image.
        image: Pixels or file; only for an AnnData.
        mpp: Microns per pixel of the image; None takes what stexpr or the image file says.

    Raises:
        DataError: An image is missing, or given twice.
        ScaleError: The pixel size is unknown.
    """
    if isinstance(spots, Section):
        if image is not None or mpp is not None:
            raise DataError(f"section {spots.name} has its own image and mpp; leave image and mpp out")
        return spots
    if image is None:
        raise DataError("an AnnData needs the image its spots lie on: give image, an array, a file or an opened image")
    opened = image if isinstance(image, SlideImage) else ArrayImage(image) if isinstance(image, np.ndarray) else None
    own = spots.copy()
    words = unpack(own)
    return assemble(own, opened or open_image(Path(str(image))), Found("section", {"mpp": mpp}, words))


def assemble(spots: AnnData, image: SlideImage, found: Found) -> Section:
    """Make a section of its parts; the caller's word goes before the words beside the data, these before the format's.

    Raises:
        DataError: Names stand twice, or positions are missing or not two finite numbers.
        ScaleError: The pixel size is unknown, absurd or contradictory.
    """
    if SPATIAL not in spots.obsm:
        raise DataError(f'section {found.name} has no obsm["spatial"]; store spot centers there, in image pixels, x then y')
    words, given = found.words, {key: value for key, value in found.given.items() if value is not None}
    mpp, mpp_source = _pixel_size(image, found)
    kept = {} if words is None else words.model_dump(exclude={"image", "added", "name", "mpp", "mpp_source"})
    name = str(given.get("section") or (words.name if words else found.name))
    known: dict[str, Any] = {"patient": name, "gene_namespace": "other", **found.more, **kept}
    known |= {key: given[key] for key in ("patient", "gene_namespace") if key in given}
    section = Section(name=name, spots=spots, image=image, mpp=mpp, mpp_source=mpp_source, **known)
    check_outline(section)
    return section


def _pixel_size(image: SlideImage, found: Found) -> tuple[float, str]:
    given, words = found.given.get("mpp"), found.words
    said = {} if words is None else {words.mpp_source: words.mpp}
    said |= {source: mpp for source, mpp in found.mpp.items() if source not in said}
    if given is not None:
        unlike = [f"{source} says {mpp:g}" for source, mpp in said.items() if abs(mpp - given) > _DIFFERS * given]
        return float(given), "; ".join(["given", *unlike])
    if not said and image.mpp is not None:
        said = {f"image file ({image.backend})": image.mpp}
    if not said:
        raise ScaleError(f"section {found.name}: microns per pixel are unknown, neither its data nor its image say; give mpp")
    source, mpp = next(iter(said.items()))
    for other, value in said.items():
        if abs(value - mpp) > _DIFFERS * mpp:
            raise ScaleError(
                f"section {found.name}: {source} says {mpp:g} um/px and {other} {value:g}; say with mpp which one it is"
            )
    return mpp, source


def packed(spots: AnnData, words: SectionWords) -> AnnData:
    """Return a copy of the spots that carries the words."""
    copy = spots.copy()
    copy.uns[PROVENANCE] = {**copy.uns.get(PROVENANCE, {}), SECTION: words.model_dump_json()}
    return copy


def unpack(spots: AnnData) -> SectionWords | None:
    """Take the words out of the spots; None where stexpr wrote none.

    Raises:
        DataError: They are not what stexpr writes.
    """
    beside = spots.uns.get(PROVENANCE)
    if not isinstance(beside, Mapping) or SECTION not in beside:
        return None
    try:
        words = SectionWords.model_validate(json.loads(str(beside[SECTION])))
    except (ValueError, ValidationError) as err:
        raise DataError(f'uns["{PROVENANCE}"]["{SECTION}"] is not what stexpr writes; delete it and give mpp yourself') from err
    rest = {key: value for key, value in beside.items() if key != SECTION}
    if rest:
        spots.uns[PROVENANCE] = rest
    else:
        del spots.uns[PROVENANCE]
    return words


def read_anndata(path: Path) -> AnnData:
    """Read an AnnData file as it is.

    Raises:
        DataError: It is no such file.
    """
    import anndata

    if not path.is_file():
        raise DataError(f"no file {path}; name an AnnData file (.h5ad)")
    try:
        return anndata.read_h5ad(path)
    except Exception as err:  # anndata and h5py raise whatever their first failing line does
        raise DataError(f"cannot read {path} as AnnData: {' '.join(str(err).split())[:200]}") from err
