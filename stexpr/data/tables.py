"""Clinical and slide tables: which patients there are, what is known of them, and which slides are theirs.

The tables are STAMP's: a clinical table with `PATIENT` and a column per target, a slide table with `PATIENT` and
`FILENAME`, as text or Excel. Cells stay text, and a missing cell is absent, so that no number, truth value or patient
name is guessed on the way; `stexpr.data.targets` gives them their meaning.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pandas as pd

from stexpr.errors import DataError, nearest

__all__ = ["ClinicalTable", "SlideTable", "named", "read_clinical", "read_slides", "read_tcga_sites", "tcga_sites"]

PATIENT: Final = "PATIENT"
FILENAME: Final = "FILENAME"
PATIENT_COLUMNS: Final = (PATIENT, "bcr_patient_barcode")
"""Columns that name the patient; the second is that of TCGA's outcome table (TCGA-CDR)."""
MISSING: Final = frozenset(
    {
        "",
        "na",
        "n/a",
        "#n/a",
        "nan",
        "nat",
        "none",
        "null",
        "missing",
        "unknown",
        "not available",
        "not applicable",
        "not reported",
    }
)
"""Cells, in lower case, that say nothing; so do those in brackets, as `[Not Available]`."""
_BRACKETS: Final = re.compile(r"\[[^\]]*\]")
_TCGA: Final = re.compile(r"TCGA-([A-Z0-9]{2})-[A-Z0-9]{4}")
_SHOWN: Final = 5


@dataclass(frozen=True)
class ClinicalTable:
    """What is known of each patient.

    Attributes:
        path: Where it was read.
        patients: Every patient, in the order of the table.
        columns: Column -> patient -> cell, stripped; a missing cell is absent.
    """

    path: Path
    patients: tuple[str, ...]
    columns: Mapping[str, Mapping[str, str]]

    def column(self, name: str) -> Mapping[str, str]:
        """Return the cells of a column by patient, without the missing ones.

        Raises:
            DataError: There is no such column; the nearest name is suggested.
        """
        if name not in self.columns:
            raise DataError(f"{self.path} has no column {name!r}; {nearest(name, self.columns)}")
        return self.columns[name]


@dataclass(frozen=True)
class SlideTable:
    """Whose tissue each slide is.

    Attributes:
        path: Where it was read.
        patient_of: Slide -> patient, in the order of the table.
    """

    path: Path
    patient_of: Mapping[str, str]


def read_clinical(path: str | Path, *, patient: str | None = None) -> ClinicalTable:
    """Read a clinical table: a row per patient, a column per target.

    Args:
        path: Text separated by commas, semicolons or tabs, or the first sheet of an Excel file.
        patient: Column that names the patient; None takes `PATIENT`, or `bcr_patient_barcode` as in TCGA-CDR.

    Raises:
        DataError: The file is no table, has no such column, no row, a column twice, a row without patient or a patient twice.
    """
    path = Path(path)
    header, rows = _read_cells(path)
    names = (patient,) if patient is not None else PATIENT_COLUMNS
    key = next((header.index(name) for name in names if name in header), None)
    if key is None:
        raise DataError(f"{path} has no column {names[0]!r} that names the patient; {nearest(names[0], header)}")
    patients = _names(path, header[key], [row[key] for row in rows])
    if twice := _repeated(patients):
        raise DataError(f"{path} lists {named('patient', twice)} more than once; keep one row per patient")
    columns = {
        name: {who: row[i] for who, row in zip(patients, rows, strict=True) if not _missing(row[i])}
        for i, name in enumerate(header)
        if i != key
    }
    return ClinicalTable(path, tuple(patients), columns)


def read_slides(path: str | Path) -> SlideTable:
    """Read a slide table: columns `PATIENT` and `FILENAME`, a row per slide; a patient may have several.

    A trailing `.h5`, as STAMP writes it, is no part of a slide's name.

    Raises:
        DataError: The file is no table, lacks a column, a name is missing or is a path, or a slide is listed twice.
    """
    path = Path(path)
    header, rows = _read_cells(path)
    for name in (PATIENT, FILENAME):
        if name not in header:
            raise DataError(f"{path} has no column {name!r}; {nearest(name, header)}")
    patients = _names(path, PATIENT, [row[header.index(PATIENT)] for row in rows])
    slides = [name.removesuffix(".h5") for name in _names(path, FILENAME, [row[header.index(FILENAME)] for row in rows])]
    for slide in slides:
        if "/" in slide or "\\" in slide or slide in ("", ".", ".."):
            raise DataError(f"{path} has the {FILENAME} {slide!r}; give names of files, without folders")
    if twice := _repeated(slides):
        raise DataError(f"{path} lists {named('slide', twice)} more than once; keep one row per slide")
    return SlideTable(path, dict(zip(slides, patients, strict=True)))


def read_tcga_sites(path: str | Path) -> dict[str, str]:
    """Read TCGA's table of tissue source sites: code -> institution; several codes may be one institution.

    Raises:
        DataError: The file is no such table, or gives a code two institutions.
    """
    path = Path(path)
    header, rows = _read_cells(path)
    columns = ("TSS Code", "Source Site")
    for name in columns:
        if name not in header:
            raise DataError(f"{path} has no column {name!r}; {nearest(name, header)}")
    code, site = (header.index(name) for name in columns)
    sites: dict[str, str] = {}
    for row in rows:
        known = sites.setdefault(row[code], row[site])  # "NA" is a code: Duke University
        if known != row[site]:
            raise DataError(f"{path} gives {row[code]!r} two sites, {known!r} and {row[site]!r}; keep one")
    return sites


def tcga_sites(patients: Iterable[str], institutions: Mapping[str, str] | None = None) -> dict[str, str]:
    """Read the site of TCGA patients off their barcodes.

    Args:
        patients: Barcodes, `TCGA-<site>-<patient>`.
        institutions: Institution of each code, from `read_tcga_sites`; None takes each code as a site of its own.

    Returns:
        Patient -> site.

    Raises:
        DataError: A barcode is none of TCGA's, or its code has no institution.

    Example:
        >>> tcga_sites(["TCGA-BH-A0B3", "TCGA-A2-A0CK"])
        {'TCGA-BH-A0B3': 'BH', 'TCGA-A2-A0CK': 'A2'}
    """
    sites = {}
    for patient in patients:
        found = _TCGA.fullmatch(patient)
        if found is None:
            raise DataError(f"{patient!r} is no TCGA barcode (as TCGA-BH-A0B3); give each patient's site in a table")
        code = found[1]
        if institutions is not None and code not in institutions:
            raise DataError(f"the site {code!r} of patient {patient} is in no row of the table of sites; add it")
        sites[patient] = code if institutions is None else institutions[code]
    return sites


def named(kind: str, names: Sequence[str]) -> str:
    """Count and name things for a message.

    Example:
        >>> named("patient", ["A", "B"])
        '2 patients (A, B)'
        >>> named("slide", [])
        '0 slides'
    """
    head = f"{len(names):,} {kind}{'' if len(names) == 1 else 's'}"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"{head} ({', '.join(names[:_SHOWN])}{more})" if names else head


def _read_cells(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        if path.suffix.lower() in (".xlsx", ".xlsm"):
            frame = pd.read_excel(path, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
        else:
            frame = pd.read_csv(
                path,
                header=None,
                dtype=str,
                keep_default_na=False,
                sep=_separator(path),
                encoding="utf-8-sig",
                skip_blank_lines=True,
            )
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:  # pandas' own errors are ValueErrors
        raise DataError(f"cannot read {path} as a table ({err}); give a .csv, .tsv or .xlsx file") from err
    cells = [[cell.strip() for cell in row] for row in frame.fillna("").to_numpy(dtype=object).tolist()]
    if len(cells) < 2:
        raise DataError(f"{path} has no rows below its header; it needs one per patient or slide")
    header = cells[0]
    if twice := _repeated([name for name in header if name]):
        raise DataError(f"{path} has {named('column', twice)} more than once; rename or remove the others")
    return header, [row for row in cells[1:] if any(row)]


def _separator(path: Path) -> str:
    with path.open(encoding="utf-8-sig") as file:
        header = file.readline()
    return max(",;\t", key=header.count)


def _names(path: Path, column: str, cells: Sequence[str]) -> list[str]:
    for row, cell in enumerate(cells):
        if not cell:
            raise DataError(f"{path} has no {column} in row {row + 2}; every row needs one")
    return list(cells)


def _repeated(names: Sequence[str]) -> list[str]:
    seen: set[str] = set()
    return list(dict.fromkeys(name for name in names if name in seen or seen.add(name)))  # type: ignore[func-returns-value]


def _missing(cell: str) -> bool:
    return cell.lower() in MISSING or _BRACKETS.fullmatch(cell) is not None
