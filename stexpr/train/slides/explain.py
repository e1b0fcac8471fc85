"""What carries the predictions of a run of a slide study: over each test slide, over all of them, and gene by gene."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pandas as pd

from stexpr.config.any_study import load_any_study
from stexpr.config.slides import SlideStudyConfig
from stexpr.data.bag_store import BagStore
from stexpr.data.bags import Bag
from stexpr.data.slide_data import read_tables
from stexpr.data.slide_files import find_slides
from stexpr.data.tables import named, read_slides
from stexpr.errors import ConfigError, DataError, ModelError
from stexpr.evaluate.records import CONFIG, MODEL, read_any_record
from stexpr.evaluate.run_record import SlideRecord
from stexpr.evaluate.slides.contact_sheet import Extreme, contact_sheet_figure, merged
from stexpr.evaluate.slides.credited_genes import credited_genes, credited_genes_figure, read_held_out_r
from stexpr.evaluate.slides.sanity import MARKERS, sanity_table
from stexpr.inference import pick_device
from stexpr.inference.explain import read_slide
from stexpr.inference.explained_output import ExplainedOutput, explained_outputs
from stexpr.inference.gene_credit import GeneCredit
from stexpr.models.bag.saved import LoadedHead, load_head
from stexpr.train.slides.explain_files import ExplainedSlide, file_name, write_explanations, write_figure, write_table
from stexpr.types import Progress, silent

__all__ = ["Explained", "explain_run"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

MOST_OUTPUTS: Final = 12
SLIDES: Final = "slides"


@dataclass(frozen=True)
class Explained:
    """What was explained.

    Attributes:
        slides: A row per slide and number: patient, value, base, how it was split.
        genes: A row per number and gene; None where the head reads no genes.
        sanity: A row per marker and clinical column; None where single slides were asked for.
        notes: What could not be shown, and why.
    """

    slides: pd.DataFrame
    genes: pd.DataFrame | None
    sanity: pd.DataFrame | None
    notes: tuple[str, ...]


def explain_run(
    run: Path,
    bags: str | Path,
    output: Path,
    *,
    images: Path | None = None,
    targets: Sequence[str] = (),
    slides: Sequence[str] = (),
    genes: Path | None = None,
    device: str = "auto",
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Explained:
    """Explain the predictions of a run on its test slides, and write the files.

    Args:
        run: Folder of a finished run of a slide study.
        bags: Folder of bags, of the encoder of the head.
        output: `slides.csv`, `genes.csv`, `sanity.csv` and sheets of patches go there, the files of each slide in `slides/`.
        images: Folder of slide images, named as the bags; folders in it are looked through too.
        targets: Targets or `target=class`; all where none is named.
        slides: Slides of the bags, of whatever patient; the slides of the test patients where none is named.
        genes: Held-out r of the encoder's genes; see `read_held_out_r`.
        device: auto, cpu, cuda …
        progress: Shows the slides.
        report: Receives the sentences of the sanity panel, and the notes.

    Raises:
        ModelError: The run holds no slide head, does not predict a target, or bags are of another encoder.
        DataError: Tables, bags or images cannot be read, or no test slide has a bag.
        ConfigError: So many targets that they should be named.
    """
    record = read_any_record(run)
    if not isinstance(record, SlideRecord):
        raise ModelError(f"{run} is a run of a study of spots; give a run of a study of slides")
    head = load_head(run / MODEL)
    head.model.to(pick_device(device))
    outputs = explained_outputs(head, targets)
    if len(outputs) > MOST_OUTPUTS and not targets:
        names = ", ".join(one.name for one in outputs[:MOST_OUTPUTS])
        raise ConfigError(f"the head predicts {len(outputs)} targets ({names} …); name those to explain with --target")
    held_out_r = None if genes is None else read_held_out_r(genes)
    study = load_any_study(run / CONFIG)
    assert isinstance(study, SlideStudyConfig)
    patient_of, notes = _patients(study, record, bags, slides)
    store = BagStore.open(bags, patient_of)
    pictures = _pictures(images, list(patient_of), notes)
    done = _over_slides(head, store, outputs, pictures, output / SLIDES, progress)
    table = _slides_table(done, patient_of, store)
    write_table(output / "slides.csv", table)
    _write_sheets(done, outputs, output, notes)
    found = _write_genes(done, outputs, held_out_r, output, notes)
    sanity = None if slides else _sanity(study, bags, progress)
    if sanity is not None:
        write_table(output / "sanity.csv", sanity)
        for sentence in sanity["sentence"]:
            report(sentence)
    for note in notes:
        report(f"note: {note}")
    return Explained(table, found, sanity, tuple(notes))


@dataclass(frozen=True)
class _Running:
    """What is kept of slides as they go by, for one number."""

    lines: list[dict[str, Any]]
    credits: list[GeneCredit]
    top: list[Extreme]
    bottom: list[Extreme]
    ranked_by: list[str]

    def add(self, one: ExplainedSlide) -> None:
        explanation = one.explanation
        line = {
            "slide": explanation.slide,
            "target": explanation.output.name,
            "value": explanation.value,
            "unit": explanation.output.unit,
            "base": np.nan if explanation.base is None else explanation.base,
            "ranked_by": explanation.ranked_by,
            "left_out_together": explanation.group_size,
        }
        if one.genes is not None:
            line |= {"genes": one.genes.method, "genes_start": one.genes.start, "genes_gap": one.genes.gap}
            self.credits.append(one.genes)
        self.lines.append(line)
        self.ranked_by.append(explanation.ranked_by)
        self.top[:] = merged([*self.top, *one.top], highest=True)
        self.bottom[:] = merged([*self.bottom, *one.bottom], highest=False)


def _over_slides(
    head: LoadedHead,
    store: BagStore,
    outputs: Sequence[ExplainedOutput],
    pictures: Mapping[str, Path],
    folder: Path,
    progress: Progress,
) -> dict[str, _Running]:
    running = {output.name: _Running([], [], [], [], []) for output in outputs}
    for slide, bag in progress(store.bags.items(), "explain slides", len(store.bags)):
        try:
            found = write_explanations(folder, read_slide(head, bag), outputs, pictures.get(slide))
        except (DataError, ModelError) as err:
            err.add_note(f"while explaining slide {slide}")
            raise
        for one in found:
            running[one.explanation.output.name].add(one)
    return running


def _patients(
    study: SlideStudyConfig, record: SlideRecord, bags: str | Path, slides: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Return the slides to explain with their patients, and what is to be said of the others."""
    known: Mapping[str, str] = {}
    try:
        known = read_slides(study.tables.slides).patient_of
    except DataError as err:
        if not slides:
            err.add_note("the run's tables tell the slides of its test patients; name slides with --slide where they are gone")
            raise
    if slides:
        return {slide: known.get(slide, "") for slide in slides}, []
    tested = set(record.fold.test_patients)
    wanted = {slide: patient for slide, patient in known.items() if patient in tested}
    there = {path.stem for path in Path(bags).glob("*.h5")}
    kept = {slide: patient for slide, patient in wanted.items() if slide in there}
    if not kept:
        raise DataError(f"none of the {len(wanted)} slides of the test patients of the run has a bag in {bags}")
    lost = [slide for slide in wanted if slide not in there]
    notes = [f"{named('test slide', lost)} without bag"] if lost else []
    several = [patient for patient in dict.fromkeys(kept.values()) if list(kept.values()).count(patient) > 1]
    if several:
        notes.append(f"{named('patient', several)} with several slides: each is explained as if it were the only one")
    return kept, notes


def _pictures(folder: Path | None, slides: Sequence[str], notes: list[str]) -> dict[str, Path]:
    if folder is None:
        return {}
    files = find_slides(folder).paths
    if lost := [slide for slide in slides if slide not in files]:
        notes.append(f"{named('slide', lost)} without image in {folder}")
    return {slide: files[slide] for slide in slides if slide in files}


def _slides_table(done: Mapping[str, _Running], patient_of: Mapping[str, str], store: BagStore) -> pd.DataFrame:
    table = pd.DataFrame([line for running in done.values() for line in running.lines])
    table.insert(0, "patient", [patient_of[slide] for slide in table["slide"]])
    table.insert(2, "patches", [store[slide].n for slide in table["slide"]])
    return table


def _write_sheets(done: Mapping[str, _Running], outputs: Sequence[ExplainedOutput], folder: Path, notes: list[str]) -> None:
    for output in outputs:
        running = done[output.name]
        if not running.top:
            notes.append(f"{output.name}: no sheet of patches, as neither bags nor slide images show them")
            continue
        n = len(running.lines)
        title = f"{output.name}: patches of {n} slide{'s' * (n != 1)} by {running.ranked_by[0]}"
        sheet = contact_sheet_figure(running.top, running.bottom, title, output.unit, name_slides=True)
        write_figure(folder / f"patches.{file_name(output.name)}.png", sheet)
        rows = [(kind, *vars(one).values()) for kind in ("top", "bottom") for one in getattr(running, kind)]
        table = pd.DataFrame(rows, columns=["end", "slide", "patch", running.ranked_by[0], "pixels"]).drop(columns="pixels")
        write_table(folder / f"patches.{file_name(output.name)}.csv", table)


def _write_genes(
    done: Mapping[str, _Running],
    outputs: Sequence[ExplainedOutput],
    held_out_r: Mapping[str, float] | None,
    folder: Path,
    notes: list[str],
) -> pd.DataFrame | None:
    tables = []
    for output in outputs:
        if credits := done[output.name].credits:
            tables.append(credited_genes(output, credits, held_out_r))
            write_figure(folder / f"genes.{file_name(output.name)}.png", credited_genes_figure(tables[-1]))
    if not tables:
        return None
    table = pd.concat(tables, ignore_index=True)
    write_table(folder / "genes.csv", table)
    unknown = int((table.drop_duplicates("gene")["trusted"] == "unknown").sum())
    if unknown:
        notes.append(f"held-out r is not known of {unknown} genes, which are not greyed; give it with --genes")
    return table


def _sanity(study: SlideStudyConfig, bags: str | Path, progress: Progress) -> pd.DataFrame:
    """Compare over all patients of the study: the encoder, not the head, predicts expression."""
    _, clinical = read_tables(study.tables)
    there = {path.stem for path in Path(bags).glob("*.h5")}
    patient_of = {slide: patient for slide, patient in read_slides(study.tables.slides).patient_of.items() if slide in there}
    store = BagStore.open(bags, patient_of)
    wanted = [gene for marker in MARKERS for gene in marker.genes if gene in store.genes]
    sums: dict[str, Array] = {}
    if wanted:
        columns = [store.genes.index(gene) for gene in wanted]
        for slide, bag in progress(store.bags.items(), "mean expression", len(store.bags)):
            sums[patient_of[slide]] = sums.get(patient_of[slide], 0) + _sum(bag, columns)
    predicted = {
        gene: {patient: float(total[i] / total[-1]) for patient, total in sums.items()} for i, gene in enumerate(wanted)
    }
    return sanity_table(store.genes, predicted, clinical.columns)


def _sum(bag: Bag, columns: Sequence[int]) -> Array:
    """Return the sums of some genes over the patches of a bag, and their number."""
    total = np.zeros(len(columns))
    for chunk in bag.chunks(instances="expression"):
        total += chunk[:, list(columns)].sum(axis=0, dtype=np.float64)
    return np.append(total, bag.n)
