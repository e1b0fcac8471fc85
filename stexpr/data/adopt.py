"""A HEST-1k download into a prepared cohort: a manifest and an index are added, nothing is copied or changed.

The files of a download agree less than those stexpr cuts: spots without a patch and patches without a spot, each in an order of
its own, gene sets that differ. The index of a section pairs its rows by barcode, and the manifest counts what has no partner.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float64, Int64

from stexpr.config import AdoptConfig, content_hash
from stexpr.data.download import Download, few, read_download
from stexpr.data.download_files import PatchFile, check_places, read_gene_names, read_patch_file, read_spot_file
from stexpr.data.hest import on_axis
from stexpr.data.manifest import (
    FORMAT,
    MANIFEST,
    CohortManifest,
    PreparedSection,
    check_section_names,
    index_file,
    read_manifest,
    section_files,
    stored_file,
    write_manifest,
)
from stexpr.data.section import check_counts, join_gene_names
from stexpr.data.store import PreparedCohort
from stexpr.data.stored import SectionIndex, write_index
from stexpr.errors import DataError, ScaleError, StexprError
from stexpr.types import SPATIAL, Progress, silent

__all__ = ["adopt"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_SCALE_DIFFERS: Final = 0.02
TWICE: Final = "barcode that stands more than once"
NO_PATCH: Final = "spot without a patch"
NO_SPOT: Final = "patch without a spot"


def adopt(
    folder: str | Path,
    config: AdoptConfig | None = None,
    *,
    patients: Path | None = None,
    progress: Progress = silent,
) -> PreparedCohort:
    """Make a prepared cohort of a download in the HEST-1k layout, in its own folder.

    `cohort.json` and `index/` are added. Spots and patches are paired by barcode; what has no partner, no counts or lies off
    the tissue is left out, counted in the manifest and named in the section's index. Called again, it looks at all anew.

    Args:
        folder: Has `st/<section>.h5ad`, `patches/<section>.h5` and, for patients and pixel sizes, `metadata/<section>.json`.
        config: Settings.
        patients: CSV file with `section`, `patient` and maybe `level0_mpp`; it goes before the metadata.
        progress: Shows the sections done.

    Returns:
        The cohort, opened.

    Raises:
        DataError: The folder is no such download or was prepared by stexpr, a patient is unknown, or the files of a section
            do not belong together; the message says how to leave that section out.
        ScaleError: A pixel size is unknown, absurd, or the patches are cut at another one than `config.mpp`.
        GeneError: The sections share no gene.
    """
    folder, config = Path(folder), config or AdoptConfig()
    if (folder / MANIFEST).exists() and not read_manifest(folder).adopted:
        raise DataError(f"{folder} is a cohort that stexpr prepared already; there is nothing to adopt")
    download = read_download(folder, leave_out=config.leave_out, patients=patients)
    try:
        check_section_names(download.sections)
    except ValueError as err:
        raise DataError(f"{folder}: {err}; leave it out with leave_out=[SECTION]") from err
    return _Adoption(download, config, progress).run()


@dataclass
class _Adoption:
    """One run of `adopt`; a class only so that its steps need not hand four arguments around."""

    download: Download
    config: AdoptConfig
    progress: Progress

    def run(self) -> PreparedCohort:
        sections = self.download.sections
        patients = self.download.patients  # asked for before hours of hashing
        genes, genes_left_out = self._gene_axis()
        patches = {section: self._said(section, self._patches) for section in sections}
        window_px = min(found.px for found in patches.values())
        entries = []
        for section in self.progress(sections, "pairing spots and patches", len(sections)):
            entries.append(self._said(section, self._section, patients[section], patches[section], genes, window_px))
        write_manifest(self.download.folder, self._manifest(entries, window_px, len(genes), genes_left_out))
        return PreparedCohort.open(self.download.folder)

    def _said(self, section: str, step: Any, *arguments: Any) -> Any:
        try:
            return step(section, *arguments)
        except StexprError as err:
            err.add_note(f"while adopting section {section}; leave_out=[{section}] goes on without it")
            raise

    def _gene_axis(self) -> tuple[list[str], dict[str, int]]:
        """Join the genes of all files; one that a file names twice is left out everywhere, for which of the two is unknown."""
        genes_of: dict[str, list[str]] = {}
        twice: set[str] = set()
        for section in self.download.sections:
            names = pd.Index(self._said(section, lambda name: read_gene_names(self.download.folder / section_files(name)[0])))
            twice.update(names[names.duplicated()])
            genes_of[section] = list(names)
        once = {section: [gene for gene in genes if gene not in twice] for section, genes in genes_of.items()}
        genes, left_out = join_gene_names(once, self.config.absent_genes)
        return genes, {**left_out, **({"named more than once in a section": len(twice)} if twice else {})}

    def _patches(self, section: str) -> PatchFile:
        """Read what stands beside the pixels, and check that they are patches at the cohort's resolution."""
        found = read_patch_file(self.download.folder / section_files(section)[1])
        level0_mpp = self.download.scale(section)[0]
        if found.reduction is not None:
            mpp = found.reduction * level0_mpp
            if abs(mpp - self.config.mpp) > _SCALE_DIFFERS * self.config.mpp:
                raise ScaleError(
                    f"section {section}: its patches shrink the image {found.reduction:g} times, which is {mpp:.4g} um/px at "
                    f"{level0_mpp:g} um/px, not mpp = {self.config.mpp:g}; set mpp to that, if all sections are cut so"
                )
        return found

    def _section(self, section: str, patient: str, patches: PatchFile, genes: Sequence[str], window_px: int) -> PreparedSection:
        folder, (counts_file, patches_file, metadata_file, _) = self.download.folder, section_files(section)
        level0_mpp, mpp_source, notes = self.download.scale(section)
        spots = read_spot_file(folder / counts_file)
        check_counts(spots, section)
        library = np.asarray(spots.X.sum(axis=1), dtype=np.float64).ravel()
        rows, patch_rows, left_out = self._pair(spots, library, patches)
        barcodes = tuple(str(name) for name in spots.obs_names[rows])
        centers = np.asarray(spots.obsm[SPATIAL], dtype=np.float64)[rows, :2]
        check_places(section, centers, patches, patch_rows, patches.px * self.config.mpp / level0_mpp)
        index = SectionIndex(
            barcodes, rows, patch_rows, library[rows], tuple(genes), len(patches.barcodes), patches.px, left_out
        )
        write_index(folder / index_file(section), index)
        named = [counts_file, patches_file, *([metadata_file] if (folder / metadata_file).is_file() else [])]
        files = {name: stored_file(folder / name) for name in (*named, index_file(section))}
        if patches.px != window_px:
            notes += (f"patches of {patches.px} px, of which a study sees the middle {window_px}",)
        counts = on_axis(sp.csr_matrix(spots.X)[rows], spots.var_names, genes)
        return PreparedSection(
            section=section,
            patient=patient,
            n_spots=len(rows),
            left_out={reason: len(names) for reason, names in left_out.items()},
            level0_mpp=level0_mpp,
            mpp_source=mpp_source,
            content=_content(index, counts, centers, files[patches_file].sha256),
            fingerprint=content_hash({name: file.sha256 for name, file in files.items()}),
            files=files,
            notes=notes,
        )

    def _pair(
        self, spots: Any, library: Float64[Array, "S"], patches: PatchFile
    ) -> tuple[Int64[Array, "N"], Int64[Array, "N"], dict[str, tuple[str, ...]]]:
        """Pair spots with patches by barcode, in the order of the spots; whatever is left out stands under one reason."""
        names, others = pd.Index(spots.obs_names.astype(str)), pd.Index(patches.barcodes)
        twice = set(names[names.duplicated()]) | set(others[others.duplicated()])
        reason = np.full(len(names), "", dtype=object)
        reason[library < self.config.min_counts] = f"fewer than {self.config.min_counts} counts"
        if "in_tissue" in spots.obs:
            reason[~_truth(spots.obs["in_tissue"])] = "not in tissue"
        reason[~names.isin(others)] = NO_PATCH
        reason[names.isin(twice)] = TWICE
        rows = np.flatnonzero(reason == "")
        left_out: dict[str, tuple[str, ...]] = {why: tuple(names[reason == why]) for why in dict.fromkeys(reason) if why}
        alone = others[~others.isin(names)]
        if len(alone):
            left_out[NO_SPOT] = tuple(alone)
        if not len(rows):
            counted = ", ".join(f"{len(barcodes)} {why}" for why, barcodes in left_out.items())
            raise DataError(
                f"no spot is left ({counted}); spots are named such as {names[0] if len(names) else '–'!r}, patches such as "
                f"{others[0] if len(others) else '–'!r}"
            )
        order = {name: row for row, name in enumerate(others)}
        return rows, np.array([order[name] for name in names[rows]], dtype=np.int64), left_out

    def _manifest(
        self, entries: Sequence[PreparedSection], window_px: int, n_genes: int, genes_left_out: dict[str, int]
    ) -> CohortManifest:
        download, config = self.download, self.config
        if download.shared_names:
            words = f"{few(download.shared_names)}: a patient's name in several studies, taken for several people"
            entries = [entry.model_copy(update={"notes": (*entry.notes, words)}) for entry in entries]
        return CohortManifest(
            format=FORMAT,
            name=config.name or download.folder.resolve().name,
            species=download.words("species"),
            tissue=download.words("organ"),
            preservation=download.words("preservation_method"),
            technology=download.words("st_technology"),
            license=download.words("license"),
            citation=download.words("study_link"),
            library=config.library,
            gene_namespace=config.gene_namespace,
            spot_diameter_um=download.length_um("spot_diameter"),
            spot_pitch_um=download.length_um("inter_spot_dist"),
            mpp=config.mpp,
            window_px=window_px,
            stain="none",
            stain_reference=None,
            min_counts=config.min_counts,
            min_tissue=0.0,
            n_genes=n_genes,
            genes_left_out=genes_left_out,
            sections=tuple(entries),
            sections_left_out=download.left_out,
            versions={name: version(name) for name in ("stexpr", "numpy", "h5py", "anndata")},
        )


def _truth(values: Any) -> Any:
    return values.astype(str).str.lower().isin(["1", "1.0", "true"]).to_numpy()


def _content(index: SectionIndex, counts: sp.csr_matrix, centers: Float64[Array, "N 2"], pixels: str) -> str:
    """Hash what a study can read; the pixels by their file, which is the publisher's and never written anew."""
    digest = hashlib.sha256(pixels.encode())
    for names in (index.barcodes, index.genes):
        digest.update("\n".join(names).encode() + b"\0")
    arrays = [index.patch_rows.astype("<i8"), index.library.astype("<f8"), centers.astype("<f8")]
    arrays += [counts.indptr.astype("<i8"), counts.indices.astype("<i8"), counts.data.astype("<f8")]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
