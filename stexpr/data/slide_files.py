"""The files of slides: which of a folder are slides, how large they are, and which are the same."""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from stexpr.data.tables import named, read_slides
from stexpr.errors import DataError

__all__ = ["SUFFIXES", "SlideFiles", "find_slides", "slide_bytes", "slide_hash"]

SUFFIXES: Final = frozenset(
    {
        *(".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide"),
        *(".jpg", ".jpeg", ".png"),
    }
)
"""Of files that are taken for slides; a folder with `.dcm` files is a DICOM slide."""
_DICOM: Final = ".dcm"
_TABLES: Final = frozenset({".csv", ".tsv", ".txt", ".xlsx"})
_READ_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class SlideFiles:
    """Slides by name.

    Attributes:
        paths: Name -> file, or folder of a DICOM slide, by name.
        missing: Slides of the table without a file.
        ignored: Files that are no slides, counted by their ending.
    """

    paths: Mapping[str, Path]
    missing: tuple[str, ...] = ()
    ignored: Mapping[str, int] = field(default_factory=dict)


def find_slides(source: str | Path) -> SlideFiles:
    """Find slides in a folder, or those of a slide table beside it.

    A slide is named as its file without the ending.

    Args:
        source: A folder, looked through with all folders in it, as the download of an archive is laid out; hidden ones are
            not. Or a slide table, `PATIENT` and `FILENAME`, in whose folder the files of its slides lie.

    Raises:
        DataError: There is no slide, or two files have the name of one.
    """
    source = Path(source)
    if source.is_dir():
        found, ignored = _walked(source)
        if not found:
            raise DataError(f"{source} holds no slide; slides end in {', '.join(sorted(SUFFIXES))}")
        _check_names(found)
        return SlideFiles({name: paths[0] for name, paths in sorted(found.items())}, ignored=ignored)
    if source.suffix.lower() not in _TABLES or not source.is_file():
        raise DataError(f"{source} is neither a folder of slides nor a slide table ({', '.join(sorted(_TABLES))})")
    listed = list(read_slides(source).patient_of)
    found, _ = _walked(source.parent)
    by_file = {path.name: [path] for paths in found.values() for path in paths}
    wanted = {name: paths for name in listed if (paths := found.get(name) or by_file.get(name))}
    if not wanted:
        raise DataError(f"none of the {len(listed):,} slides of {source} lies in {source.parent} or a folder in it")
    _check_names(wanted)
    missing = tuple(name for name in listed if name not in wanted)
    return SlideFiles({_name(paths[0]): paths[0] for _, paths in sorted(wanted.items())}, missing)


def slide_bytes(slide: Path) -> int:
    """Return the bytes of a slide, with the files in its folder if it has one."""
    return sum(path.stat().st_size for path in _files_of(slide))


def slide_hash(slide: Path) -> str:
    """Return a SHA-256 of what a slide's files hold, whatever they are called.

    Raises:
        DataError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for path in _files_of(slide):
        try:
            with path.open("rb") as file:
                while block := file.read(_READ_BYTES):
                    digest.update(block)
        except OSError as err:
            raise DataError(f"cannot read {path}: {err.strerror or err}") from err
    return digest.hexdigest()


def _files_of(slide: Path) -> list[Path]:
    """List the files of a slide: itself, those of a DICOM folder, those beside an MRXS file."""
    folder = slide if slide.is_dir() else slide.with_suffix("")
    beside = sorted(path for path in folder.iterdir() if path.is_file()) if _has_folder(slide) else []
    return beside if slide.is_dir() else [slide, *beside]


def _has_folder(slide: Path) -> bool:
    return slide.is_dir() or (slide.suffix.lower() == ".mrxs" and slide.with_suffix("").is_dir())


def _walked(folder: Path) -> tuple[dict[str, list[Path]], dict[str, int]]:
    """Return the slides below a folder by name, and other files counted by ending."""
    found: dict[str, list[Path]] = {}
    ignored: Counter[str] = Counter()
    for path in _visible(folder):
        if path.is_dir() or path.suffix.lower() in SUFFIXES:
            found.setdefault(_name(path), []).append(path)
        else:
            ignored[path.suffix or path.name] += 1
    return found, dict(ignored)


def _visible(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder, and each folder with DICOM files instead of these."""
    for where, folders, files in os.walk(folder):
        at = Path(where)
        if any(Path(name).suffix.lower() == _DICOM for name in files):
            folders.clear()
            yield at
            continue
        # the folder beside an MRXS file holds its pixels
        kept = {name for name in folders if not name.startswith(".") and f"{name}.mrxs" not in files}
        folders[:] = sorted(kept)
        yield from (at / name for name in sorted(files) if not name.startswith("."))


def _name(path: Path) -> str:
    return path.name if path.is_dir() else path.stem


def _check_names(found: Mapping[str, list[Path]]) -> None:
    for name, paths in found.items():
        if len(paths) > 1:
            others = named("file", [str(path) for path in paths])
            raise DataError(f"slide {name!r} is the name of {len(paths)} files: {others}; rename all but one")
