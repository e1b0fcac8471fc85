"""A section as files that others read: an `.h5ad` with its image beside it, or a folder in the HEST-1k layout."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Final

from stexpr.data.download import Download, read_metadata
from stexpr.data.exchange import Found, SectionWords, assemble, packed, read_anndata, unpack
from stexpr.data.hest import write_anndata, write_metadata, write_spots
from stexpr.data.images import open_image
from stexpr.data.manifest import check_section_names, section_files
from stexpr.data.pyramid import write_pyramid
from stexpr.data.section import Section
from stexpr.errors import DataError, nearest
from stexpr.types import SPATIAL

__all__ = ["read_h5ad", "read_hest", "write_h5ad", "write_hest"]

IMAGES: Final = "wsis"
SUFFIXES: Final = (".tif", ".tiff", ".svs", ".ndpi", ".mrxs", ".scn", ".png", ".jpg", ".jpeg")
_PICTURE_PX: Final = 1000


def write_h5ad(section: Section, path: Path) -> None:
    """Write `<name>.h5ad` and the image beside it, `<name>.tif`, which the file names where scanpy does.

    Raises:
        DataError: A file is there already, or cannot be written.
    """
    image = path.with_suffix(".tif")
    spots = packed(section.spots, SectionWords.of(section, image=image.name))
    thumbnail, scale = _picture(section)
    factors = {"tissue_hires_scalef": scale}
    if section.spot_diameter_um is not None:
        factors["spot_diameter_fullres"] = section.spot_diameter_um / section.mpp
    library = {"images": {"hires": thumbnail}, "scalefactors": factors, "metadata": {"source_image_path": image.name}}
    spots.uns[SPATIAL] = {**spots.uns.get(SPATIAL, {}), section.name.replace("/", "_"): library}
    with _all_or_none(image, path):
        write_pyramid(image, section.image, section.mpp)
        write_anndata(path, spots, more_bytes=thumbnail.nbytes)


def read_h5ad(path: Path, given: Mapping[str, Any]) -> Section:
    """Read an `.h5ad` and its image: the one given, the one the file names in its own folder, or the one of the same name.

    Args:
        path: The file.
        given: `image`, `section`, `patient`, `mpp`, `gene_namespace`; None where the file shall say.

    Raises:
        DataError: A file is missing or broken, or no image or several could be meant.
        ScaleError: The pixel size is unknown.
    """
    spots = read_anndata(path)
    words = unpack(spots)
    image = open_image(Path(given.get("image") or _image_of(path, spots, words)))
    return assemble(spots, image, Found(path.stem, given, words))


def write_hest(section: Section, folder: Path) -> None:
    """Write a section into a folder in the HEST-1k layout: `st/`, `wsis/` and `metadata/`.

    Patches are not written: they are cut at a study's own resolution, by `stexpr prepare` or HEST's tools.

    Raises:
        DataError: The section's name is no file name, the folder holds it already, or cannot be written.
    """
    try:
        check_section_names([section.name])
    except ValueError as err:
        raise DataError(f"section {section.name!r}: {err}; give another name with section") from err
    counts, _, metadata, _ = (folder / name for name in section_files(section.name))
    image = folder / IMAGES / f"{section.name}.tif"
    thumbnail, scale = _picture(section)
    diameter = None if section.spot_diameter_um is None else section.spot_diameter_um / section.mpp
    described = {
        "id": section.name,
        "patient": section.patient,
        "image_filename": image.name,
        "pixel_size_um_estimated": section.mpp,
        "fullres_px_width": section.image.width,
        "fullres_px_height": section.image.height,
        "spots_under_tissue": section.spots.n_obs,
        "nb_genes": section.spots.n_vars,
        "spot_diameter": section.spot_diameter_um,
        "inter_spot_dist": section.spot_pitch_um,
        "mpp_source": section.mpp_source,
        "gene_namespace": section.gene_namespace,
        "left_out": section.left_out,
        "notes": list(section.notes),
    }
    with _all_or_none(image, counts, metadata):
        write_pyramid(image, section.image, section.mpp)
        write_spots(counts, section.spots.copy(), thumbnail, scale=scale, spot_px=diameter)
        write_metadata(metadata, described)


def read_hest(folder: Path, given: Mapping[str, Any]) -> Section:
    """Read one section of a folder in the HEST-1k layout with its full image.

    Args:
        folder: Holds `st/`, `wsis/` and `metadata/`.
        given: As in `read_h5ad`; `section` chooses where there are several. What the metadata hold of others' making is read
            as far as it means the same.

    Raises:
        DataError: There is no such section, several and none chosen, or a file is missing or broken.
        ScaleError: The pixel size is unknown.
    """
    held = sorted(path.stem for path in (folder / "st").glob("*.h5ad"))
    name = given.get("section") or (held[0] if len(held) == 1 else None)
    if name is None:
        raise DataError(f"{folder} holds {len(held)} sections: {', '.join(held) or 'none'}; choose one with section=NAME")
    if name not in held:
        raise DataError(f"{folder} holds no section {name!r}; {nearest(name, held)}")
    image = given.get("image") or _one_of(name, [folder / IMAGES / f"{name}{suffix}" for suffix in SUFFIXES])
    said = read_metadata(folder, name)
    download = Download(folder, (name,), {}, {name: said}, {})
    notes = [str(note) for note in said["notes"]] if isinstance(said.get("notes"), list) else []
    scale: dict[str, float] = {}
    if given.get("mpp") is None:
        mpp, source, contradictions = download.scale(name)
        scale, notes = {str(said.get("mpp_source") or source): mpp}, [*notes, *contradictions]
    spots = read_anndata(folder / section_files(name)[0])
    unpack(spots)
    more: dict[str, Any] = {
        "spot_diameter_um": download.length_um("spot_diameter"),
        "spot_pitch_um": download.length_um("inter_spot_dist"),
        "left_out": {str(reason): n for reason, n in _mapping(said.get("left_out")).items() if isinstance(n, int)},
        "notes": tuple(notes),
    }
    if isinstance(said.get("patient"), str) and said["patient"]:
        more["patient"] = said["patient"]
    if said.get("gene_namespace") in ("ensembl", "symbol"):
        more["gene_namespace"] = said["gene_namespace"]
    return assemble(spots, open_image(Path(image)), Found(name, given, mpp=scale, more=more))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _image_of(path: Path, spots: Any, words: SectionWords | None) -> Path:
    named = [words.image] if words is not None and words.image else []
    if not named:
        libraries = _mapping(spots.uns.get(SPATIAL)).values()
        named = [str(_mapping(_mapping(library).get("metadata")).get("source_image_path", "")) for library in libraries]
    inside = [name for name in dict.fromkeys(named) if name and PurePosixPath(name).name == name and "\\" not in name]
    beside = [path.with_suffix(suffix) for suffix in SUFFIXES]
    return _one_of(path.name, [path.parent / name for name in inside] or beside)


def _one_of(what: str, candidates: list[Path]) -> Path:
    there = [path for path in candidates if path.is_file()]
    if len(there) != 1:
        found = ", ".join(str(path) for path in there) or f"none, looked for {candidates[0]} and the like"
        raise DataError(f"the image of {what} is not clear (found {found}); name it with image=FILE")
    return there[0]


def _picture(section: Section) -> tuple[Any, float]:
    thumbnail = section.image.thumbnail(_PICTURE_PX)
    return thumbnail, max(thumbnail.shape[:2]) / max(section.image.width, section.image.height)


@contextmanager
def _all_or_none(*paths: Path) -> Iterator[None]:
    """Refuse files that are there already, and leave none of them behind where the block fails."""
    for path in paths:
        if path.exists():
            raise DataError(f"{path} exists already; choose another target, or delete it")
    try:
        yield
    except BaseException:
        for path in paths:
            path.unlink(missing_ok=True)
        raise
