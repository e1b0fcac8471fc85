"""What a download in the HEST-1k layout says of its sections, before anything is paired: files, patients, pixel sizes.

Metadata of a collection are as its many sources left them. What is missing is asked for, what contradicts is noted, and a
patient's name is only unique within the study it comes from.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import pandas as pd

from stexpr.data.manifest import section_files
from stexpr.data.section import check_mpp
from stexpr.errors import DataError, ScaleError, nearest

__all__ = ["Download", "few", "read_download", "read_metadata"]

COLUMNS: Final = "columns `section` and `patient`, and `level0_mpp` where the metadata lack the pixel size"
_EXAMPLES: Final = 5
_MPP_DIFFERS: Final = 0.02


@dataclass(frozen=True)
class Download:
    """A folder with `st/`, `patches/` and `metadata/`.

    Attributes:
        folder: Where it is; nothing in it is changed.
        sections: Those with counts and patches, by name.
        left_out: Other sections, and why.
        metadata: What `metadata/<section>.json` says; empty where there is none.
        table: The user's own word, by section: `patient`, `level0_mpp`.
    """

    folder: Path
    sections: tuple[str, ...]
    left_out: dict[str, str]
    metadata: Mapping[str, Mapping[str, Any]]
    table: Mapping[str, Mapping[str, str]]

    @cached_property
    def patients(self) -> dict[str, str]:
        """Section -> patient; a name that several studies use gets the study before it, for those are several people.

        Raises:
            DataError: Nobody says whose tissue a section is.
        """
        stated = {section: self.table.get(section, {}).get("patient") or None for section in self.sections}
        named = {section: self.text(section, "patient") for section in self.sections}
        unknown = [section for section in self.sections if (stated[section] or named[section]) is None]
        if unknown:
            raise DataError(
                f"the metadata of {self.folder} do not say whose tissue {len(unknown)} sections are: {few(unknown)}; patients "
                f"are what training and test are split by, so say it with --patients TABLE.csv ({COLUMNS}), or leave the "
                "sections out with leave_out=[SECTION, …]"
            )
        ambiguous = self.shared_names
        found = {}
        for section in self.sections:
            own = str(named[section])
            study = self.text(section, "dataset_title") or "unnamed study"
            found[section] = stated[section] or (f"{study}: {own}" if own in ambiguous else own)
        return found

    @cached_property
    def shared_names(self) -> dict[str, int]:
        """Patients' names that the metadata of several studies use, and how many do."""
        studies: dict[str, set[str | None]] = {}
        for section in self.sections:
            name = self.text(section, "patient")
            if name is not None and not self.table.get(section, {}).get("patient"):
                studies.setdefault(name, set()).add(self.text(section, "dataset_title"))
        return {name: len(titles) for name, titles in studies.items() if len(titles) > 1}

    def scale(self, section: str) -> tuple[float, str, tuple[str, ...]]:
        """Return microns per level-0 pixel, how they are known, and what contradicts them.

        HEST-1k's own word is the size it estimated from the spots; what the image file says comes second.

        Raises:
            ScaleError: Nobody says, or it is absurd.
        """
        told = self.table.get(section, {}).get("level0_mpp")
        sources = {
            "patients table": _number(told),
            "metadata, pixel_size_um_estimated": _number(self.metadata[section].get("pixel_size_um_estimated")),
            "metadata, pixel_size_um_embedded": _number(self.metadata[section].get("pixel_size_um_embedded")),
        }
        known = {source: mpp for source, mpp in sources.items() if mpp is not None}
        if told and "patients table" not in known:
            raise ScaleError(f"section {section}: level0_mpp = {told!r} in the patients table is no number above 0")
        if not known:
            raise ScaleError(
                f"section {section}: microns per pixel are unknown: its metadata have neither pixel_size_um_estimated nor "
                f"pixel_size_um_embedded; give them with --patients TABLE.csv ({COLUMNS})"
            )
        source, mpp = next(iter(known.items()))
        check_mpp(mpp, f"section {section}, {source}")
        others = [(name, other) for name, other in known.items() if abs(other - mpp) > _MPP_DIFFERS * mpp]
        return mpp, source, tuple(f"{name} says {other:g} um/px, {mpp:g} is used ({source})" for name, other in others)

    def words(self, key: str, otherwise: str = "not stated") -> str:
        """Join what the metadata of the sections say under a key, each value once."""
        said = dict.fromkeys(text for section in self.sections if (text := self.text(section, key)) is not None)
        return "; ".join(said) or otherwise

    def length_um(self, key: str) -> float | None:
        """Return a length that the metadata of all sections agree on, else None."""
        said = {_number(self.metadata[section].get(key)) for section in self.sections}
        return next(iter(said)) if len(said) == 1 else None

    def text(self, section: str, key: str) -> str | None:
        """Return what the metadata say under a key; None where they say nothing or that it is unknown."""
        value = self.metadata[section].get(key)
        if value is None or isinstance(value, bool | list | dict) or (isinstance(value, float) and not math.isfinite(value)):
            return None
        text = " ".join(str(value).split())
        return text if text and text.lower() not in ("nan", "none", "null", "unknown", "n/a") else None


def read_download(folder: Path, *, leave_out: Sequence[str] = (), patients: Path | None = None) -> Download:
    """Look which sections a folder holds.

    Args:
        folder: The download.
        leave_out: Sections to leave out.
        patients: A CSV file with the user's own word on sections.

    Raises:
        DataError: The folder holds no section with counts and patches, `leave_out` or the table names one that is not
            there, or a file cannot be read.
    """
    counts, patches = (
        {path.name.removesuffix(suffix) for path in folder.glob(f"{kind}/*{suffix}") if not path.name.startswith(".")}
        for kind, suffix in (("st", ".h5ad"), ("patches", ".h5"))
    )
    if not counts & patches:
        held = f"{len(counts)} files st/*.h5ad and {len(patches)} files patches/*.h5" if folder.is_dir() else "no such folder"
        raise DataError(f"{folder} holds no section in the HEST-1k layout ({held}); name the folder that has st/ and patches/")
    for section in leave_out:
        if section not in counts | patches:
            raise DataError(f"leave_out names {section!r}, no section of {folder}; {nearest(section, counts | patches)}")
    reasons = dict.fromkeys(sorted(counts - patches), "no patches in the download")
    reasons |= dict.fromkeys(sorted(patches - counts), "no counts in the download")
    reasons |= dict.fromkeys(leave_out, "left out by leave_out")
    sections = tuple(sorted((counts & patches) - set(leave_out)))
    if not sections:
        raise DataError(f"leave_out names all {len(counts & patches)} sections of {folder}; keep one")
    table = {} if patients is None else _read_table(patients)
    for section in table.keys() - counts - patches:
        raise DataError(f"{patients} names {section!r}, no section of {folder}; {nearest(section, counts | patches)}")
    return Download(folder, sections, reasons, {section: read_metadata(folder, section) for section in sections}, table)


def few(names: Collection[str]) -> str:
    """Name the first few."""
    return ", ".join(list(names)[:_EXAMPLES]) + (f" and {len(names) - _EXAMPLES} more" if len(names) > _EXAMPLES else "")


def read_metadata(folder: Path, section: str) -> dict[str, Any]:
    """Read `metadata/<section>.json`; empty where there is none.

    Raises:
        DataError: It holds something else than keys and values.
    """
    path = folder / section_files(section)[2]
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as err:
        raise DataError(f"{path} is not JSON ({err}); download it again") from err
    if not isinstance(values, dict):
        raise DataError(f"{path} holds {type(values).__name__}, not keys and values; download it again")
    return values


def _read_table(path: Path) -> dict[str, dict[str, str]]:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, sep=None, engine="python", encoding="utf-8-sig")
    except (OSError, ValueError) as err:
        raise DataError(f"cannot read {path}: {err}; it needs {COLUMNS}") from err
    allowed = ["section", "patient", "level0_mpp"]
    if not {"section", "patient"} <= set(table.columns) <= set(allowed):
        raise DataError(f"{path} has the columns {', '.join(map(str, table.columns))}; it needs {COLUMNS}")
    if (twice := table["section"][table["section"].duplicated()]).size:
        raise DataError(f"{path} names section {twice.iloc[0]!r} more than once")
    return {str(row["section"]): {key: str(row[key]).strip() for key in table.columns} for row in table.to_dict("records")}


def _number(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and number > 0 else None
