"""The data of a slide study: patients, slides, bags and labels, matched, with what identifies them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from stexpr.config import content_hash
from stexpr.config.slides import SlideStudyConfig, SlideTables, TargetConfig
from stexpr.data.bag_store import BagStore
from stexpr.data.slide_cohort import SlideCohort, labelled, match_slides
from stexpr.data.slide_folds import SlideFolds, make_slide_folds
from stexpr.data.slide_targets import read_targets
from stexpr.data.tables import ClinicalTable, read_clinical, read_slides, read_tcga_sites, tcga_sites
from stexpr.data.targets import Survival
from stexpr.errors import DataError, nearest

__all__ = ["SlideData", "TargetColumns", "open_slide_data", "read_tables"]

SITE: Final = "site"


@dataclass(frozen=True)
class TargetColumns:
    """One target of a protocol, with the columns that its patterns stand for.

    Attributes:
        config: As the protocol has it.
        names: Of the targets that can be learned, in the order of the table.
    """

    config: TargetConfig
    names: tuple[str, ...]


@dataclass(frozen=True)
class SlideData:
    """Everything a slide study reads.

    Attributes:
        name: Of the cohort, the clinical table's.
        cohort: Patients, slides and labels.
        columns: The targets of the protocol, those that cannot be learned left out.
        clinical: Column -> patient -> cell; of two tables with a column of one name the first counts.
        site_of: Patient -> site; empty where the study does not say.
        store: The bags.
        left_out: Targets that are not learned, and why.
    """

    name: str
    cohort: SlideCohort
    columns: tuple[TargetColumns, ...]
    clinical: Mapping[str, Mapping[str, str]]
    site_of: Mapping[str, str]
    store: BagStore
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def patients(self) -> tuple[str, ...]:
        """Patients with slides and a label, in the order of the slide table."""
        return tuple(self.cohort.slides_of)

    @property
    def hash(self) -> str:
        """Identify patients, slides, labels and sites, whatever the encoder of the bags."""
        targets = {
            name: [dict(target.time), dict(target.event)] if isinstance(target, Survival) else dict(target.values)
            for name, target in self.cohort.targets.items()
        }
        return content_hash({"slides": dict(self.cohort.slides_of), "targets": targets, "sites": dict(self.site_of)})

    def folds(self, config: SlideStudyConfig) -> SlideFolds:
        """Partition the patients as the protocol says."""
        split = config.protocol.split
        return make_slide_folds(
            self.cohort.slides_of,
            self.cohort.targets,
            k=split.k,
            repeats=split.repeats,
            inner_k=split.inner_k,
            site_of=self.site_of if split.preserve_sites else None,
            seed=split.seed,
        )

    def cells(self, column: str, patients: Sequence[str]) -> list[str | None]:
        """Return a clinical column, or `site`, of some patients; None where missing.

        Raises:
            DataError: There is no such column.
        """
        if column == SITE and self.site_of:
            return [self.site_of.get(patient) for patient in patients]
        if column not in self.clinical:
            raise DataError(f"no clinical table has a column {column!r}; {nearest(column, self.clinical)}")
        own = self.clinical[column]
        return [own.get(patient) for patient in patients]

    def describe(self) -> str:
        """Say who is in and who is not, a line each."""
        return "\n".join([self.cohort.describe(), *(f"{name}: {why}" for name, why in self.left_out.items())])


def open_slide_data(config: SlideStudyConfig) -> SlideData:
    """Read tables and bag headers, and match them; everyone who is left out is named in `describe`.

    Raises:
        DataError: A table or a bag cannot be read, a column is missing, or nothing can be learned.
    """
    tables, merged = read_tables(config.tables)
    site_of = _sites(config.tables, merged, tables[0].patients)
    asked, refused = read_targets(config.protocol.targets, merged, site_of)
    slides = read_slides(config.tables.slides)
    store = BagStore.open(config.bags)
    cohort = match_slides(slides, [target for targets in asked for target in targets], bags=store.bags)
    rare = {**refused, **_rare(cohort, config.protocol.min_positives)}
    cohort = replace(cohort, targets={name: target for name, target in cohort.targets.items() if name not in rare})
    if not cohort.targets:
        raise DataError(f"no target is left: {'; '.join(f'{name}: {why}' for name, why in rare.items())}")
    known = {patient for target in cohort.targets.values() for patient in labelled(target)}
    cohort = replace(cohort, slides_of={p: slides for p, slides in cohort.slides_of.items() if p in known})
    kept = [
        TargetColumns(target, tuple(one.name for one in targets if one.name in cohort.targets))
        for target, targets in zip(config.protocol.targets, asked, strict=True)
    ]
    used = [slide for slides in cohort.slides_of.values() for slide in slides]
    return SlideData(
        name=config.tables.clinical[0].stem,
        cohort=cohort,
        columns=tuple(columns_of for columns_of in kept if columns_of.names),
        clinical=merged.columns,
        site_of={patient: site_of[patient] for patient in cohort.slides_of if patient in site_of},
        store=BagStore(store.path, {slide: store[slide] for slide in used}),
        left_out=rare,
    )


def read_tables(tables: SlideTables) -> tuple[list[ClinicalTable], ClinicalTable]:
    """Read the clinical tables of a study.

    Returns:
        Each of them, and all columns as one table.

    Raises:
        DataError: One cannot be read.
    """
    read = [read_clinical(path, patient=tables.patient if i == 0 else None) for i, path in enumerate(tables.clinical)]
    patients = tuple(dict.fromkeys(patient for table in read for patient in table.patients))
    columns = {name: cells for table in reversed(read) for name, cells in table.columns.items()}
    return read, ClinicalTable(read[0].path, patients, columns)


def _sites(tables: SlideTables, table: ClinicalTable, patients: Sequence[str]) -> dict[str, str]:
    if tables.sites is None:
        return {}
    if tables.sites == "tcga":
        return tcga_sites(patients)
    if tables.sites in table.columns:
        return dict(table.columns[tables.sites])
    if Path(tables.sites).is_file():
        return tcga_sites(patients, read_tcga_sites(tables.sites))
    raise DataError(f"tables.sites = {tables.sites!r} is no column, file or `tcga`; {nearest(tables.sites, table.columns)}")


def _rare(cohort: SlideCohort, fewest: int) -> dict[str, str]:
    """Name targets of which a class has too few patients to be tested."""
    rare: dict[str, str] = {}
    for name, target in cohort.targets.items():
        if isinstance(target, Survival):
            classes: dict[str, int] = {"event": sum(target.event.values())}
        elif target.kind == "continuous":
            continue
        else:
            classes = {}
            for value in target.values.values():
                classes[str(value)] = classes.get(str(value), 0) + 1
        few = [f"{n} patients are {label}" for label, n in sorted(classes.items()) if n < fewest]
        if few:
            rare[name] = f"not tested: {', '.join(few)}, fewer than {fewest}"
    return rare
