"""Raw sections into a prepared cohort.

Sections are made one at a time, with one image open, in a staging folder beside the finished ones. Only when all are there
do they move into place, and `cohort.json` is written last. So a failure leaves the cohort of an earlier run as it was, and
a killed run goes on where it stopped: every staged section carries the fingerprint of what it was made from.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from stexpr.config import PrepareConfig, content_hash
from stexpr.config.files import hash_file, writable, write_whole
from stexpr.data.cards import DataCard, SectionEntry
from stexpr.data.cutting import section_stain, write_section
from stexpr.data.manifest import (
    MANIFEST,
    CohortManifest,
    PreparedSection,
    check_section_names,
    damage,
    read_manifest,
    write_manifest,
)
from stexpr.data.readers import input_files, read_section
from stexpr.data.section import Section, join_genes
from stexpr.data.store import PreparedCohort
from stexpr.errors import CardError, ConfigError, DataError, StexprError, nearest
from stexpr.types import Progress, T, silent

STAGING = ".preparing"
_CODE = 1
"""Raised when this code would write other contents from the same input, so that old cohorts are made anew."""
_ON_MANIFEST = (
    "name", "species", "tissue", "preservation", "technology", "license", "citation", "library", "gene_namespace",
    "spot_diameter_um", "spot_pitch_um",
)  # fmt: skip
_READ_FROM_CARD = (
    "reader", "absent_genes", "gene_namespace", "symbol_table", "spot_diameter_um", "spot_pitch_um", "species", "tissue",
    "technology",
)  # fmt: skip
"""What of the card, beside a section's own entry, shows in its files."""


def prepare(
    card: DataCard, source: Path, target: Path, config: PrepareConfig, *, progress: Progress = silent
) -> PreparedCohort:
    """Cut patches, check spots and write a cohort that studies can train on.

    A re-run makes only what changed: a section is kept when its input files (by content), its entry on the card, the
    settings and the gene axis are those it was made from and its files are there. Sections that left the card are removed.

    Args:
        card: The cohort's data card.
        source: Folder with the raw files that the card names.
        target: Folder of the cohort: new, empty, or one of this card.
        config: Pixel size, window, spot checks and stain.
        progress: Shows how far it is.

    Returns:
        The cohort, opened.

    Raises:
        DataError: An input is wrong, a section has no spot left, the folder belongs to something else or cannot be
            written. Earlier results stay whole.
        ConfigError: The stain reference is no section of the card.
    """
    return _Preparation(card, Path(source), Path(target), config, progress).run()


@dataclass
class _Preparation:
    """One run of `prepare`; a class only so that its steps need not hand five arguments around."""

    card: DataCard
    source: Path
    target: Path
    config: PrepareConfig
    progress: Progress

    def run(self) -> PreparedCohort:
        self._check_card()
        previous = self._previous()
        inputs = self._hash_inputs()
        if previous is not None and self._unchanged(previous, inputs):
            manifest = self._manifest(previous.sections, previous.n_genes, previous.genes_left_out, previous.versions)
        else:
            manifest = self._make(previous, inputs)
        # A damaged section made again may well equal what the manifest says: then it still has to move into place.
        if manifest != previous or (self.target / STAGING).exists():
            self._commit(manifest, previous)
        return PreparedCohort.open(self.target)

    def _check_card(self) -> None:
        names = [entry.section for entry in self.card.sections]
        if not names:
            raise CardError(f"data card {self.card.name} lists no sections; add them under `sections`")
        try:
            check_section_names(names)
        except ValueError as err:
            raise CardError(f"data card {self.card.name}: {err}") from err
        reference = self.config.stain_reference
        if reference is not None and reference not in names:
            raise ConfigError(f"stain_reference {reference!r} is no section of {self.card.name}; {nearest(reference, names)}")

    def _previous(self) -> CohortManifest | None:
        """Return the manifest of an earlier run, and refuse a folder that is anything else but empty."""
        if not self.target.exists():
            return None
        if not self.target.is_dir():
            raise DataError(f"{self.target} is a file; name a folder for the cohort")
        if not (self.target / MANIFEST).exists():
            foreign = sorted(path.name for path in self.target.iterdir() if path.name != STAGING)
            # A first run killed while it moved sections into place leaves them without a manifest, beside the staging folder.
            if foreign and not (self.target / STAGING).is_dir():
                raise DataError(
                    f"{self.target} holds {foreign[0]!r} and no {MANIFEST}, so it is not a cohort; choose a new or empty folder"
                )
            return None
        manifest = read_manifest(self.target)
        if manifest.adopted:
            raise DataError(f"{self.target} is an adopted download, whose files stay as they are; choose another folder")
        if manifest.name != self.card.name:
            raise DataError(f"{self.target} is cohort {manifest.name!r}, not {self.card.name!r}; choose another folder")
        return manifest

    def _hash_inputs(self) -> dict[str, str]:
        """Hash, for each section, everything it is made from but the gene axis and the stain reference."""
        card = self.card
        shared = {
            "code": _CODE,
            "config": self.config.model_dump(mode="json"),
            "card": card.model_dump(mode="json", include=set(_READ_FROM_CARD)),
        }
        hashes: dict[str, str] = {}
        known: dict[str, str] = {}
        for entry in self.progress(card.sections, "hashing input files", len(card.sections)):
            files = {path.relative_to(self.source).as_posix(): path for path in input_files(entry, self.source, card)}
            for name in files.keys() - known.keys():
                known[name] = hash_file(files[name])
            read = {name: known[name] for name in files}
            hashes[entry.section] = content_hash({**shared, "entry": entry.model_dump(mode="json"), "files": read})
        return hashes

    def _fingerprints(self, inputs: dict[str, str], genes: Sequence[str]) -> dict[str, str]:
        reference = inputs[self.config.stain_reference] if self.config.stain_reference else None
        axis = content_hash(list(genes))
        return {name: content_hash({"inputs": own, "genes": axis, "stain": reference}) for name, own in inputs.items()}

    def _unchanged(self, previous: CohortManifest, inputs: dict[str, str]) -> bool:
        """Say whether everything is as an earlier run left it, without reading a single count."""
        if [entry.section for entry in previous.sections] != list(inputs) or (self.target / STAGING).exists():
            return False
        if any(damage(self.target, entry, content=True) for entry in previous.sections):
            return False
        prints = self._fingerprints(inputs, PreparedCohort(self.target, previous).genes)
        return all(entry.fingerprint == prints[entry.section] for entry in previous.sections)

    def _make(self, previous: CohortManifest | None, inputs: dict[str, str]) -> CohortManifest:
        """Make the sections that need it, in the staging folder."""
        sections = {
            entry.section: self._read(entry)
            for entry in self.progress(self.card.sections, "reading counts", len(self.card.sections))
        }
        genes, genes_left_out = join_genes(list(sections.values()), self.card.absent_genes)
        prints = self._fingerprints(inputs, genes)
        done = self._finished(previous, prints)
        missing = [section for name, section in sections.items() if name not in done]
        reference = None
        if missing and self.config.stain_reference is not None:
            reference = _closing(sections[self.config.stain_reference], section_stain, config=self.config)
        for section in self.progress(missing, "preparing sections", len(missing)):
            staging = self.target / STAGING
            entry = _closing(
                section, write_section, folder=staging, genes=genes, card=self.card, config=self.config,
                fingerprint=prints[section.name], reference=reference,
            )  # fmt: skip
            write_whole(_note(staging, section.name), partial(Path.write_text, data=entry.model_dump_json()))
            done[section.name] = entry
        kept = previous is not None and all(entry in previous.sections for entry in done.values())
        versions = previous.versions if previous is not None and kept else _versions()
        return self._manifest([done[name] for name in sections], len(genes), genes_left_out, versions)

    def _read(self, entry: SectionEntry) -> Section:
        try:
            return read_section(entry, self.source, self.card)
        except StexprError as err:
            err.add_note(f"while reading section {entry.section} of patient {entry.patient}")
            raise

    def _finished(self, previous: CohortManifest | None, prints: dict[str, str]) -> dict[str, PreparedSection]:
        """Find the sections that need no work: in place from an earlier run, or staged by one that was stopped."""
        staging = self.target / STAGING
        places = [(self.target, entry) for entry in (previous.sections if previous else ())]
        places += [(staging, entry) for entry in _staged(staging).values()]
        return {
            entry.section: entry
            for folder, entry in places
            if entry.fingerprint == prints.get(entry.section) and damage(folder, entry, content=True) is None
        }

    def _commit(self, manifest: CohortManifest, previous: CohortManifest | None) -> None:
        """Move staged sections into place, remove what left the card, and write the manifest last."""
        staging = self.target / STAGING
        staged = _staged(staging)
        named = {name for entry in manifest.sections for name in entry.files}
        with writable(self.target):
            for entry in manifest.sections:
                for name in entry.files if staged.get(entry.section) == entry else ():
                    (self.target / name).parent.mkdir(exist_ok=True)
                    os.replace(staging / name, self.target / name)
            for entry in previous.sections if previous else ():
                for name in set(entry.files) - named:
                    (self.target / name).unlink(missing_ok=True)
            write_manifest(self.target, manifest)
            shutil.rmtree(staging, ignore_errors=True)

    def _manifest(
        self, sections: Sequence[PreparedSection], n_genes: int, genes_left_out: dict[str, int], versions: dict[str, str]
    ) -> CohortManifest:
        described = {key: getattr(self.card, key) for key in _ON_MANIFEST}
        settings = self.config.model_dump()
        return CohortManifest(
            **described, **settings, n_genes=n_genes, genes_left_out=genes_left_out, sections=tuple(sections), versions=versions
        )


def _closing(section: Section, step: Callable[..., T], **arguments: Any) -> T:
    """Do one step with a section's image, and close the image whatever happens."""
    try:
        return step(section=section, **arguments)
    except StexprError as err:
        err.add_note(f"while preparing section {section.name} of patient {section.patient}")
        raise
    finally:
        section.image.close()


def _note(staging: Path, section: str) -> Path:
    """Where a staged section says, once all its files are there, what it was made from."""
    return staging / f"{section}.json"


def _staged(staging: Path) -> dict[str, PreparedSection]:
    entries: dict[str, PreparedSection] = {}
    for note in sorted(staging.glob("*.json")):
        with suppress(ValueError):  # written by another version of the format: the section is made anew
            entry = PreparedSection.model_validate_json(note.read_bytes())
            entries[entry.section] = entry
    return entries


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("stexpr", "numpy", "pillow", "h5py", "anndata", "torchstain")}
