"""A prepared cohort on disk, and how it is read.

The layout is HEST-1k's: `st/<section>.h5ad`, `patches/<section>.h5`, `metadata/<section>.json`, plus `cohort.json`. Reading
needs h5py only. Patches lie contiguous and uncompressed in their file: on MOB's 256 px patches a single one reads at about
35,000/s so, 14,000/s from one-patch chunks and 2,000/s compressed, and a center crop reads no more rows than it needs.
"""

import os
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, Int, UInt8

from stexpr.config.files import hash_file
from stexpr.data.manifest import CohortManifest, PreparedSection, read_manifest, section_files
from stexpr.errors import DataError, nearest
from stexpr.types import SPATIAL, Progress, silent

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class PreparedCohort:
    """Sections with counts and patches, ready to train on; spots of a section have one order everywhere.

    Attributes:
        path: Folder of the cohort.
        manifest: What `cohort.json` says.
        min_counts: Spots with fewer counts are hidden, see `keeping`.
    """

    def __init__(self, path: Path, manifest: CohortManifest, *, min_counts: int = 0) -> None:
        self.path = path
        self.manifest = manifest
        self.min_counts = min_counts
        self._entries = {entry.section: entry for entry in manifest.sections}
        self._counts: dict[str, sp.csr_matrix] = {}

    @classmethod
    def open(cls, path: str | Path) -> "PreparedCohort":
        """Open a folder that `stexpr prepare` wrote.

        Checks the manifest, and that every file is there with its size; `verify` also checks contents.

        Raises:
            DataError: It is not a prepared cohort, or a file is missing or has another size.
        """
        folder = Path(path)
        manifest = read_manifest(folder)
        for entry in manifest.sections:
            problem = damage(folder, entry)
            if problem:
                raise DataError(f"{problem}; run stexpr prepare again")
        return cls(folder, manifest)

    def keeping(self, min_counts: int) -> "PreparedCohort":
        """Return this cohort without the spots of fewer counts, as if they had never been measured."""
        return self if min_counts <= self.min_counts else PreparedCohort(self.path, self.manifest, min_counts=min_counts)

    def hidden(self, section: str) -> int:
        """Return how many spots of a section `keeping` hides."""
        return self.entry(section).n_spots - len(self.spots(section))

    @property
    def name(self) -> str:
        """Name of the cohort, as on its data card."""
        return self.manifest.name

    @property
    def mpp(self) -> float:
        """Microns per pixel of the patches."""
        return self.manifest.mpp

    @property
    def window_px(self) -> int:
        """Side of the patches."""
        return self.manifest.window_px

    @cached_property
    def hash(self) -> str:
        """Identify the content: equal hashes give equal results."""
        return self.manifest.hash

    @property
    def sections(self) -> tuple[str, ...]:
        """Names of the sections, in the order of the manifest."""
        return tuple(self._entries)

    @property
    def patients(self) -> tuple[str, ...]:
        """Names of the patients, each once, in order of appearance."""
        return tuple(dict.fromkeys(self.patient_of.values()))

    @cached_property
    def patient_of(self) -> dict[str, str]:
        """Section -> patient."""
        return {section: entry.patient for section, entry in self._entries.items()}

    @cached_property
    def genes(self) -> tuple[str, ...]:
        """The gene axis that every section shares."""
        first = self.sections[0]
        with open_h5(self.path / section_files(first)[0]) as file:
            genes = tuple(_index(file["var"]))
        if len(genes) != self.manifest.n_genes:
            raise DataError(
                f"section {first} of {self.path} holds {len(genes)} genes, its manifest says {self.manifest.n_genes}"
            )
        return genes

    def entry(self, section: str) -> PreparedSection:
        """Return what the manifest says of a section.

        Raises:
            DataError: There is no such section; the nearest name is suggested.
        """
        if section not in self._entries:
            raise DataError(f"cohort {self.name} has no section {section!r}; {nearest(section, self._entries)}")
        return self._entries[section]

    def sections_of(self, patients: Iterable[str]) -> tuple[str, ...]:
        """Return the sections of these patients, in the order of the manifest.

        Raises:
            DataError: There is no such patient.
        """
        wanted = set(patients)
        for patient in sorted(wanted - set(self.patients)):
            raise DataError(f"cohort {self.name} has no patient {patient!r}; {nearest(patient, self.patients)}")
        return tuple(section for section, patient in self.patient_of.items() if patient in wanted)

    def counts(self, section: str) -> sp.csr_matrix:
        """Return raw counts, spots x `genes`; kept in memory once read, so do not change it in place."""
        if section not in self._counts:
            entry = self.entry(section)
            with open_h5(self.path / section_files(section)[0]) as file:
                counts = _csr(file, (entry.n_spots, self.manifest.n_genes))
                self._counts[section] = counts[self._kept(file)] if self.min_counts else counts
        return self._counts[section]

    def spots(self, section: str) -> pd.DataFrame:
        """Return one row per spot.

        Returns:
            Index: barcode. Columns: `x_px`, `y_px` (center, level-0 pixels), `x_um`, `y_um`, `library` (counts over every
            gene of the source file, also those off the gene axis), `tissue_fraction` (of the patch, 0 to 1).
        """
        entry = self.entry(section)
        with open_h5(self.path / section_files(section)[0]) as file:
            centers = np.asarray(file["obsm"][SPATIAL][:], dtype=np.float64)
            columns = {key: np.asarray(file["obs"][key][:], dtype=np.float64) for key in ("library", "tissue_fraction")}
            index = pd.Index(_index(file["obs"]), name="barcode")
            kept = self._kept(file)
        places = {f"{axis}_px": centers[:, i] for i, axis in enumerate("xy")}
        microns = {f"{axis}_um": centers[:, i] * entry.level0_mpp for i, axis in enumerate("xy")}
        return pd.DataFrame({**places, **microns, **columns}, index=index)[kept]

    def patches(self, section: str, window_px: int | None = None) -> UInt8[Array, "S H W 3"]:
        """Read every patch of a section.

        Args:
            section: Name of the section.
            window_px: Side of the center crop; None reads the patches whole. A crop whose parity differs from that of the
                patch lies half a pixel off center, up and left.

        Raises:
            DataError: The crop is larger than the patches.
        """
        reader = self.patch_reader(section, window_px)
        try:
            return reader.all()
        finally:
            reader.close()

    def patch_reader(self, section: str, window_px: int | None = None) -> "PatchReader":
        """Return single patches by position, for loader workers; arguments as in `patches`."""
        entry = self.entry(section)
        window = self.window_px if window_px is None else window_px
        if not 1 <= window <= self.window_px:
            raise DataError(
                f"a window of {window} px does not fit the {self.window_px} px patches of cohort {self.name}; take a smaller "
                "input.window_px, or prepare the cohort with a larger window_px"
            )
        rows = None
        if self.min_counts:
            with open_h5(self.path / section_files(section)[0]) as file:
                rows = np.flatnonzero(self._kept(file))
        return PatchReader(self.path / section_files(section)[1], entry.n_spots, self.window_px, window, rows=rows)

    def _kept(self, file: h5py.File) -> Bool[Array, "S"]:
        return np.asarray(file["obs"]["library"][:] >= self.min_counts)

    def verify(self, *, progress: Progress = silent) -> None:
        """Hash every file again.

        Raises:
            DataError: Files differ from the manifest; all are named.
        """
        files = {name: file for entry in self.manifest.sections for name, file in entry.files.items()}
        bar = progress(files.items(), "verifying files", len(files))
        altered = [name for name, file in bar if hash_file(self.path / name) != file.sha256]
        if altered:
            raise DataError(f"cohort {self.path} was altered: {', '.join(altered)}; run stexpr prepare again")


class PatchReader:
    """Patches of one section, read one at a time.

    The file is opened on first use in each process: HDF5 handles must not cross a fork, and a pickled reader carries none.
    """

    def __init__(
        self, path: Path, n_spots: int, stored_px: int, window_px: int, *, rows: Int[Array, "S"] | None = None
    ) -> None:
        self.path = path
        self.window_px = window_px
        self._rows = rows
        self._shape = (n_spots, stored_px, stored_px, 3)
        start = (stored_px - window_px) // 2
        self._crop = slice(start, start + window_px)
        self._opened: tuple[int, h5py.File] | None = None

    def __len__(self) -> int:
        return self._shape[0] if self._rows is None else len(self._rows)

    def __getitem__(self, i: int) -> UInt8[Array, "H W 3"]:
        row = i if self._rows is None else int(self._rows[i])
        patch: Array = self._images()[row, self._crop, self._crop]
        return patch

    def all(self) -> UInt8[Array, "S H W 3"]:
        """Read every patch."""
        patches: Array = self._images()[:, self._crop, self._crop]
        return patches if self._rows is None else patches[self._rows]

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def _images(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            file = open_h5(self.path)
            images = file.get("img")
            if images is None or images.shape != self._shape or images.dtype != np.uint8:
                held = "no img" if images is None else f"img {images.dtype} {images.shape}"
                file.close()
                raise DataError(f"{self.path} holds {held}, the manifest says uint8 {self._shape}; run stexpr prepare again")
            self._opened = (os.getpid(), file)
        return self._opened[1]["img"]


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


def open_h5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading.

    Raises:
        DataError: The file is missing or no HDF5 file.
    """
    try:
        return h5py.File(path, "r")
    except OSError as err:
        raise DataError(f"cannot read {path} as HDF5 ({err}); run stexpr prepare again") from err


def _index(frame: Any) -> list[str]:
    values = frame[frame.attrs["_index"]]
    return [str(value) for value in values.asstr()[:]]


def _csr(file: Any, shape: tuple[int, int]) -> sp.csr_matrix:
    X = file["X"]
    if X.attrs.get("encoding-type") != "csr_matrix" or tuple(X.attrs["shape"]) != shape:
        raise DataError(f"{file.filename} holds X as {dict(X.attrs)}, expected csr_matrix {shape}; run stexpr prepare again")
    return sp.csr_matrix((X["data"][:], X["indices"][:], X["indptr"][:]), shape=shape)
