"""One section from a format into another: AnnData with an image, SpatialData, the HEST-1k layout; from instruments too."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic import Field

from stexpr.config import Strict
from stexpr.data.cards import FOLDER_OPTIONS, FolderKind, Matrix
from stexpr.data.exchange import GIVEN
from stexpr.data.readers import read_folder
from stexpr.data.section import GeneNamespace, Section
from stexpr.data.section_files import read_h5ad, read_hest, write_h5ad, write_hest
from stexpr.data.spatialdata import from_spatialdata, write_spatialdata
from stexpr.errors import ConfigError, DataError, nearest

__all__ = ["ConvertConfig", "convert", "read_any"]


class ConvertConfig(Strict):
    """How a source is read; what is null, the source says."""

    section: str | None = Field(None, min_length=1, description="name of the section; of several in a HEST folder, which one")
    patient: str | None = Field(None, min_length=1)
    mpp: float | None = Field(None, gt=0, description="microns per pixel of the image")
    gene_namespace: GeneNamespace | None = None
    image: str | None = Field(None, min_length=1, description="image file; of a SpatialData store, the image element")
    table: str | None = Field(None, description="which table of a SpatialData store")
    region: str | None = Field(None, description="which shapes of a SpatialData store")
    coordinate_system: str | None = Field(None, description="where image and shapes of a SpatialData store meet")
    kind: FolderKind | None = Field(None, description="what wrote an instrument's folder")
    matrix: Matrix | None = Field(None, description="Space Ranger: which matrix")
    bin_um: int | None = Field(None, gt=0, description="Visium HD: side of a spot")
    pseudo_spot_um: float | None = Field(None, gt=0, description="Xenium: side of the squares transcripts are pooled into")
    alignment: Path | None = Field(None, description="Xenium: CSV file from H&E pixels to Xenium pixels")


class _Format(NamedTuple):
    """How a format is told, read and maybe written; `options` are the fields of `ConvertConfig` that it alone takes."""

    is_it: Callable[[Path], bool]
    read: Callable[[Path, Mapping[str, Any]], Section]
    write: Callable[[Section, Path], None] | None = None
    options: tuple[str, ...] = ()


def _read_store(path: Path, said: Mapping[str, Any]) -> Section:
    return from_spatialdata(path, **{key: said[key] for key in ("image", *_FORMATS["spatialdata"].options, *GIVEN)})


def _read_instrument(path: Path, said: Mapping[str, Any]) -> Section:
    return read_folder(path, **{key: value for key, value in said.items() if key not in _FORMATS["spatialdata"].options})


_INSTRUMENT_OPTIONS: Final = ("kind", *sorted({option for options in FOLDER_OPTIONS.values() for option in options}))
_FORMATS: Final[dict[str, _Format]] = {
    "h5ad": _Format(lambda path: path.suffix == ".h5ad", read_h5ad, write_h5ad),
    "spatialdata": _Format(
        lambda path: path.suffix == ".zarr" or any((path / name).is_file() for name in ("zarr.json", ".zgroup")),
        _read_store,
        write_spatialdata,
        ("table", "region", "coordinate_system"),
    ),
    "hest": _Format(lambda path: (path / "st").is_dir(), read_hest, write_hest),
    "instrument": _Format(lambda path: True, _read_instrument, options=_INSTRUMENT_OPTIONS),
}
"""Formats in the order they are looked for; the last one takes any folder, and says itself what it cannot read."""


def read_any(source: str | Path, config: ConvertConfig | None = None) -> Section:
    """Read a section, whatever format it is in.

    Args:
        source: An `.h5ad`, a SpatialData store, a folder in the HEST-1k layout, or that of an instrument.
        config: How it is read.

    Raises:
        ConfigError: A setting is of another format.
        DataError: The source is missing or broken, or holds several of what only one can be taken of.
        ScaleError: The pixel size is unknown or contradictory.
    """
    path, said = Path(source), (config or ConvertConfig()).model_dump()
    if not path.exists():
        raise DataError(f"no file or folder {path}; name an .h5ad, a SpatialData store, a HEST-1k folder or an instrument's")
    name = next(name for name, form in _FORMATS.items() if form.is_it(path))
    for other, form in _FORMATS.items():
        for option in form.options if other != name else ():
            if said[option] is not None:
                raise ConfigError(f"{option} is for a source in the format {other}; {path} is {name}")
    try:
        return _FORMATS[name].read(path, said)
    except Exception as err:
        err.add_note(f"while reading {path} as {name}")
        raise


def convert(source: str | Path, target: str | Path, *, to: str | None = None, config: ConvertConfig | None = None) -> Section:
    """Write a section in another format, without loss of counts, names, positions, columns, pixel size or pixels.

    Args:
        source: As in `read_any`.
        target: A file `.h5ad`, a store `.zarr`, or the folder of a HEST-1k layout, to which the section is added.
        to: `h5ad`, `spatialdata` or `hest`; None goes by the target's suffix.
        config: How the source is read.

    Returns:
        The section, as it was read.

    Raises:
        ConfigError: The format of the target is not clear, or a setting is of another format than the source.
        DataError: As `read_any`; or the target exists already, or cannot be written.
        ScaleError: As `read_any`.
    """
    path = Path(target)
    suffixes = {".h5ad": "h5ad", ".zarr": "spatialdata"}
    form = to or suffixes.get(path.suffix)
    if form is None:
        raise ConfigError(f"what is {path} to be? Say --to h5ad, spatialdata or hest, or let it end in .h5ad or .zarr")
    write = _FORMATS[form].write if form in _FORMATS else None
    if write is None:
        written = [name for name, own in _FORMATS.items() if own.write is not None]
        raise ConfigError(f"stexpr does not write the format {form!r}; {nearest(form, written)}")
    if form != "hest" and suffixes.get(path.suffix) != form:
        wanted = next(suffix for suffix, name in suffixes.items() if name == form)
        raise ConfigError(f"a target in the format {form} ends in {wanted}; {path} does not")
    section = read_any(source, config)
    try:
        write(section, path)
    finally:
        section.image.close()
    return section
