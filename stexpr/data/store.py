"""A prepared cohort on disk, and how it is read.

The layout is HEST-1k's: `st/<section>.h5ad`, `patches/<section>.h5`, `metadata/<section>.json`, plus `cohort.json`. Reading
needs h5py only. Patches lie contiguous and uncompressed in their file: on MOB's 256 px patches a single one reads at about
70,000/s so, 14,000/s from one-patch chunks and 2,000/s compressed, and a center crop reads no more rows than it needs.

A HEST-1k download that was adopted is a prepared cohort too, with an index beside the files of each section (see `stored`).
"""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Bool, UInt8

from stexpr.config import Colors
from stexpr.config.files import hash_file
from stexpr.data.manifest import CohortManifest, PreparedSection, damage, read_manifest
from stexpr.data.patches import PatchReader
from stexpr.data.stain import STANDARD, fit_channels, sampled
from stexpr.data.stored import AGAIN, StoredSection
from stexpr.errors import DataError, nearest
from stexpr.types import Progress, silent

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class PreparedCohort:
    """Sections with counts and patches, ready to train on; spots of a section have one order everywhere.

    Attributes:
        path: Folder of the cohort.
        manifest: What `cohort.json` says.
        min_counts: Spots with fewer counts are hidden, see `keeping`.
        standardized: Whether patches come in each section's standardized colors, see `colored`.
    """

    def __init__(self, path: Path, manifest: CohortManifest, *, min_counts: int = 0, standardized: bool = False) -> None:
        self.path = path
        self.manifest = manifest
        self.min_counts = min_counts
        self.standardized = standardized
        self._tables: dict[str, UInt8[Array, "256 3"]] = {}
        self._in_standard_colors: PreparedCohort | None = None
        self._entries = {entry.section: entry for entry in manifest.sections}
        self._counts: dict[str, sp.csr_matrix] = {}
        self._stored: dict[str, StoredSection] = {}

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
                raise DataError(f"{problem}; {AGAIN}")
        return cls(folder, manifest)

    def keeping(self, min_counts: int) -> "PreparedCohort":
        """Return this cohort without the spots of fewer counts, as if they had never been measured."""
        if min_counts <= self.min_counts:
            return self
        return PreparedCohort(self.path, self.manifest, min_counts=min_counts, standardized=self.standardized)

    def colored(self, colors: Colors) -> "PreparedCohort":
        """Return this cohort with its patches as they were prepared, or in each section's standardized colors.

        Standardized, each channel of a section's tissue has the mean and spread of `stain.STANDARD`, whatever the stain and
        the scanner made of it. Only images are looked at, so the sections to be predicted are treated as those trained on.

        Raises:
            DataError: The cohort was prepared with a stain normalization, which is not done twice.
        """
        if colors == "as_prepared" or self.standardized:
            return self
        if self.manifest.stain != "none":
            raise DataError(
                f"the stain of cohort {self.path} was normalized ({self.manifest.stain}) when it was prepared; set "
                "input.colors=as_prepared, or prepare it with stain=none"
            )
        if self._in_standard_colors is None:  # one for all folds, which share what they read and compute
            view = PreparedCohort(self.path, self.manifest, min_counts=self.min_counts, standardized=True)
            view._counts, view._stored = self._counts, self._stored
            self._in_standard_colors = view
        return self._in_standard_colors

    @property
    def stain(self) -> str:
        """Stain normalization of the patches: `none`, `reinhard`, `macenko` or `standardized`."""
        return "standardized" if self.standardized else self.manifest.stain

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
        genes = self._files(first).genes
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
            counts = self._files(section).counts(self.manifest.n_genes)
            self._counts[section] = counts[self._kept(section)] if self.min_counts else counts
        return self._counts[section]

    def spots(self, section: str) -> pd.DataFrame:
        """Return one row per spot.

        Returns:
            Index: barcode. Columns: `x_px`, `y_px` (center, level-0 pixels), `x_um`, `y_um`, `library` (counts over every
            gene of the source file, also those off the gene axis), `tissue_fraction` (of the patch, 0 to 1; NaN in an adopted
            cohort, whose mask nobody made).
        """
        level0_mpp, spots = self.entry(section).level0_mpp, self._files(section).spots()
        for column, axis in enumerate("xy"):
            spots.insert(2 + column, f"{axis}_um", spots[f"{axis}_px"] * level0_mpp)
        return spots[self._kept(section)]

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
        files = self._files(section)
        rows = np.flatnonzero(self._kept(section)) if self.min_counts else None
        colors = self._table(section) if self.standardized else None
        if files.index is None:
            return PatchReader(files.patches_path, entry.n_spots, self.window_px, window, rows=rows, colors=colors)
        rows = files.index.patch_rows if rows is None else files.index.patch_rows[rows]
        return PatchReader(files.patches_path, files.index.n_patches, files.index.patch_px, window, rows=rows, colors=colors)

    def _table(self, section: str) -> UInt8[Array, "256 3"]:
        """Return the section's colors in standardized ones, fitted on whole patches, whatever window is read."""
        if section not in self._tables:
            reader = PreparedCohort(self.path, self.manifest, min_counts=self.min_counts).patch_reader(section)
            try:
                profile = fit_channels(np.stack([reader[i] for i in sampled(len(reader))]))
            except DataError as err:
                err.add_note(f"section {section} of {self.path}")
                raise
            finally:
                reader.close()
            self._tables[section] = profile.table(STANDARD)
        return self._tables[section]

    def _files(self, section: str) -> StoredSection:
        if section not in self._stored:
            self._stored[section] = StoredSection(self.path, self.entry(section))
        return self._stored[section]

    def _kept(self, section: str) -> Bool[Array, "S"]:
        return self._files(section).library >= self.min_counts

    def verify(self, *, progress: Progress = silent) -> None:
        """Hash every file again.

        Raises:
            DataError: Files differ from the manifest; all are named.
        """
        files = {name: file for entry in self.manifest.sections for name, file in entry.files.items()}
        bar = progress(files.items(), "verifying files", len(files))
        altered = [name for name, file in bar if hash_file(self.path / name) != file.sha256]
        if altered:
            raise DataError(f"cohort {self.path} was altered: {', '.join(altered)}; {AGAIN}")
