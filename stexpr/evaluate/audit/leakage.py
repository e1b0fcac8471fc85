"""The checks for leaks that need no image and no model: who is on which side, and whether a section or spot is there twice.

They are cheap enough to run before every training; `check_before_training` does.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations

from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.errors import LeakageError
from stexpr.evaluate.audit.content import MIN_GENES, identical_counts, repeated_barcodes
from stexpr.evaluate.audit.findings import Finding, Overlap

__all__ = [
    "check_barcodes",
    "check_before_training",
    "check_patches",
    "check_patient_names",
    "check_sections",
    "check_sides",
    "check_spots",
]

TWIN = 0.05
"""Share of the smaller section's spots, and no fewer than three, that make two sections one under two names."""
_ADVICE = "take one of them off the data card, or give both to one patient, and prepare the cohort again"


def check_before_training(cohort: PreparedCohort, folds: Sequence[Fold]) -> tuple[str, ...]:
    """Refuse folds that put one patient, section or spot on two sides, whatever it is called.

    Reads the counts, which a study reads anyway and the cohort keeps, and hashes each spot's: 0.4 s for 48 sections of HER2ST's
    size, once read.

    Args:
        cohort: The prepared cohort.
        folds: The folds about to be trained.

    Returns:
        What is no leak but should be known, such as one section twice on one side.

    Raises:
        LeakageError: A patient or a spot is on both sides of a fold, or a section holds one barcode twice.
    """
    used = {section for fold in folds for section in (*fold.train_sections, *fold.test_sections)}
    sections = [section for section in cohort.sections if section in used]
    for section, barcodes in repeated_barcodes(cohort, sections).items():
        raise LeakageError(
            f"section {section} holds {len(barcodes)} barcodes more than once ({barcodes[0]}, ...), so a spot may train and "
            "test; prepare the cohort again"
        )
    for fold in folds:
        problem = check_sides(fold, cohort.patient_of)
        if problem.severity == "leak":
            raise LeakageError(problem.sentence)
    notes = []
    for overlap in identical_counts(cohort, sections):
        for fold in folds:
            first, second = ({overlap.first, overlap.second} & set(own) for own in (fold.train_sections, fold.test_sections))
            if first and second and overlap.first != overlap.second:
                raise LeakageError(
                    f"spots with identical counts train and test in fold {fold.index}: {overlap.words()}; {_ADVICE}"
                )
        notes.append(f"spots with identical counts: {overlap.words()}")
    return tuple(notes)


def check_sides(fold: Fold, patient_of: Mapping[str, str]) -> Finding:
    """Look for patients of the cohort on both sides of a fold, whatever the fold calls them.

    A `Fold` refuses one name on two sides; here the cohort's manifest says whose a section is.

    Args:
        fold: The fold.
        patient_of: Section -> patient, by the cohort.
    """
    unknown = [section for section in (*fold.train_sections, *fold.test_sections) if section not in patient_of]
    if unknown:
        return Finding("patients", "flag", f"fold {fold.index} names section {unknown[0]!r}, which the cohort does not have")
    train, test = ({patient_of[section] for section in own} for own in (fold.train_sections, fold.test_sections))
    both = sorted(train & test)
    if both:
        sentence = (
            f"{len(both)} patients are in the training and the test set of fold {fold.index}: {', '.join(both)}; "
            "make the folds anew, by patient"
        )
        return Finding("patients", "leak", sentence, {"patients": both})
    sentence = f"{len(train)} patients train and {len(test)} test in fold {fold.index}, none on both sides"
    return Finding("patients", "passed", sentence, {"train": sorted(train), "test": sorted(test)})


def check_patient_names(patients: Sequence[str]) -> Finding:
    """Look for patients whose names differ in case, blanks and separators only; they may be one."""

    def plain(name: str) -> str:
        return re.sub(r"[\s._+-]+", "-", name.strip()).casefold()

    alike = [(a, b) for a, b in combinations(patients, 2) if plain(a) == plain(b)]
    if alike:
        pairs = ", ".join(f"{a!r} and {b!r}" for a, b in alike)
        return Finding(
            "patient names", "flag", f"{pairs} may be one patient, who would train and test; correct the card", {"pairs": alike}
        )
    return Finding("patient names", "passed", f"the names of {len(patients)} patients are clearly different")


def check_spots(cohort: PreparedCohort, identical: Sequence[Overlap]) -> Finding:
    """Judge spots with identical counts: across patients a leak, within one patient a spot that counts twice.

    One barcode in two sections is normal where barcodes are array coordinates, and means nothing unless the counts agree.
    """
    details = {"overlaps": _plain(cohort, identical)}
    across, within = _by_patient(cohort, identical)
    found = across or within
    if not found:
        n = sum(cohort.counts(section).shape[0] for section in cohort.sections)
        return Finding("spots", "passed", f"no two of {n} spots have identical counts", details)
    n, same = (sum(values) for values in zip(*((overlap.n, overlap.same_barcode) for overlap in found), strict=True))
    what = "are one measurement under two patients" if across else "count twice within a patient"
    sentence = f"{n} spots with identical counts ({same} of them also with one barcode) {what}: {_words(found)}; {_ADVICE}"
    return Finding("spots", "leak" if across else "flag", sentence, details)


def check_barcodes(repeated: Mapping[str, Sequence[str]]) -> Finding:
    """Judge barcodes that one section holds more than once: folds name spots by barcode."""
    if not repeated:
        return Finding("barcodes", "passed", "no section holds a barcode twice")
    n = sum(map(len, repeated.values()))
    first = next(iter(repeated))
    sentence = (
        f"{n} barcodes stand more than once in their section ({first}: {repeated[first][0]}, ...), so one spot may train and "
        "validate; correct the counts file and prepare the cohort again"
    )
    return Finding("barcodes", "leak", sentence, {section: list(barcodes) for section, barcodes in repeated.items()})


def check_sections(cohort: PreparedCohort, evidence: Mapping[str, Sequence[Overlap]]) -> Finding:
    """Judge pairs of sections that share a good part of their spots.

    Across patients a section under two names is a leak in every fold that tests one of the two. Within a patient both stay
    on one side of the outer folds, so it is a flag: the section counts twice, and validation by section chooses epochs on
    spots that train.

    Args:
        cohort: The prepared cohort.
        evidence: Overlaps by what is shared, such as "identical counts" or "the same patches".
    """
    found: dict[tuple[str, str], list[str]] = {}
    for what, overlaps in evidence.items():
        for overlap in overlaps:
            smaller = min(cohort.counts(section).shape[0] for section in (overlap.first, overlap.second))
            if overlap.first != overlap.second and overlap.n >= max(3, TWIN * smaller):
                shares = found.setdefault((overlap.first, overlap.second), [])
                shares.append(f"{what} in {overlap.n} of {smaller} spots")
    if not found:
        sentence = f"no two of {len(cohort.sections)} sections share counts, expression or patches"
        if cohort.manifest.n_genes < MIN_GENES:
            sentence += f"; {cohort.manifest.n_genes} genes are too few to find a section that was processed again"
        return Finding("sections", "passed", sentence)
    leak = any(cohort.patient_of[a] != cohort.patient_of[b] for a, b in found)
    words = "; ".join(
        f"{a} (patient {cohort.patient_of[a]}) and {b} (patient {cohort.patient_of[b]}): {', '.join(shares)}"
        for (a, b), shares in found.items()
    )
    details = {"pairs": [[a, b, shares] for (a, b), shares in found.items()]}
    return Finding("sections", "leak" if leak else "flag", f"one section under two names: {words}; {_ADVICE}", details)


def check_patches(cohort: PreparedCohort, overlaps: Sequence[Overlap], n_blank: int) -> Finding:
    """Judge patches that two sections share: across patients a leak, within one patient a flag."""
    details = {"overlaps": _plain(cohort, overlaps), "blank": n_blank}
    across, within = _by_patient(cohort, overlaps)
    found = across or within
    if not found:
        n = sum(cohort.counts(section).shape[0] for section in cohort.sections)
        blank = f"; {n_blank} blank ones were not compared" if n_blank else ""
        return Finding("patches", "passed", f"no two sections share one of {n} patches, in any orientation{blank}", details)
    whose = "two patients" if across else "two sections of one patient"
    sentence = f"{sum(overlap.n for overlap in found)} patches are in {whose}: {_words(found)}; {_ADVICE}"
    return Finding("patches", "leak" if across else "flag", sentence, details)


def _by_patient(cohort: PreparedCohort, overlaps: Sequence[Overlap]) -> tuple[list[Overlap], list[Overlap]]:
    """Part overlaps into those across patients and those within one."""
    across = [one for one in overlaps if cohort.patient_of[one.first] != cohort.patient_of[one.second]]
    return across, [one for one in overlaps if one not in across]


def _words(overlaps: Sequence[Overlap]) -> str:
    more = [f"and {len(overlaps) - 5} more pairs of sections"] if len(overlaps) > 5 else []
    return "; ".join([*(overlap.words() for overlap in overlaps[:5]), *more])


def _plain(cohort: PreparedCohort, overlaps: Sequence[Overlap]) -> list[dict[str, object]]:
    patients = [(cohort.patient_of[one.first], cohort.patient_of[one.second]) for one in overlaps]
    return [{**one._asdict(), "patients": own} for one, own in zip(overlaps, patients, strict=True)]
