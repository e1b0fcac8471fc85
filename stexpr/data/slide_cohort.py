"""Patients with slides and labels, matched, and everyone who is left out by name."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from stexpr.data.tables import SlideTable, named
from stexpr.data.targets import Labels, Survival
from stexpr.errors import DataError

__all__ = ["SlideCohort", "Target", "labelled", "match_slides"]

Target: TypeAlias = Labels | Survival


@dataclass(frozen=True)
class SlideCohort:
    """Patients of the tables who have slides, and everyone who could not be used.

    Attributes:
        slides_of: Patient -> slides, in the order of the slide table.
        targets: By name, restricted to these patients.
        without_slide: Patients of the tables who have no slide.
        without_patient: Slides whose patient is in no table.
        without_label: Target -> patients with slides who have no label on it; a head learns nothing from them.
        without_bag: Slides of the slide table that have no bag.
        without_row: Bags that are in no row of the slide table.
        refused: Target -> why it cannot be learned from these patients.
    """

    slides_of: Mapping[str, tuple[str, ...]]
    targets: Mapping[str, Target]
    without_slide: tuple[str, ...] = ()
    without_patient: tuple[str, ...] = ()
    without_label: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    without_bag: tuple[str, ...] = ()
    without_row: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)

    def describe(self) -> str:
        """Say who is in and who is not, a line each."""
        n_slides = sum(len(slides) for slides in self.slides_of.values())
        lines = [f"{len(self.slides_of):,} patients, {n_slides:,} slides, {len(self.targets):,} targets"]
        lists = (
            ("patient", self.without_slide, "without slide"),
            ("slide", self.without_patient, "without patient"),
            ("slide", self.without_bag, "without bag"),
            ("bag", self.without_row, "in no row of the slide table"),
            *(
                ("patient", patients, f"without label on {named('target', names)}")
                for patients, names in self._lacking().items()
            ),
        )
        lines += [f"{named(kind, names)} {why}" for kind, names, why in lists if names]
        return "\n".join(lines + list(self.refused.values()))

    def _lacking(self) -> dict[tuple[str, ...], list[str]]:
        """Targets by the patients who lack them, so that 76 genes of one panel are one line."""
        lacking: dict[tuple[str, ...], list[str]] = {}
        for name, patients in self.without_label.items():
            lacking.setdefault(patients, []).append(name)
        return lacking


def match_slides(slides: SlideTable, targets: Sequence[Target], *, bags: Iterable[str] | None = None) -> SlideCohort:
    """Bring patients, slides and labels together, naming everyone who is left out.

    Args:
        slides: From `read_slides`.
        targets: From one or several clinical tables.
        bags: Slides whose features exist; None takes all of the slide table.

    Raises:
        DataError: A target is given twice, no patient has both slide and label, or no target can be learned.
    """
    if len({target.name for target in targets}) < len(targets) or not targets:
        raise DataError(f"targets are {[target.name for target in targets]}; give at least one, each once")
    present = set(slides.patient_of) if bags is None else set(bags)
    known = dict.fromkeys(patient for target in targets for patient in target.patients)
    slides_of: dict[str, tuple[str, ...]] = {}
    for slide, patient in slides.patient_of.items():
        if slide in present and patient in known:
            slides_of[patient] = (*slides_of.get(patient, ()), slide)
    learned: dict[str, Target] = {}
    refused: dict[str, str] = {}
    for target in targets:
        try:
            learned[target.name] = target.among(slides_of)
        except DataError as err:
            refused[target.name] = str(err)
    if not learned:
        raise DataError(f"nothing can be learned from {len(slides_of)} patients with slides: {'; '.join(refused.values())}")
    return SlideCohort(
        slides_of=slides_of,
        targets=learned,
        without_slide=tuple(patient for patient in known if patient not in slides_of),
        without_patient=tuple(slide for slide, patient in slides.patient_of.items() if patient not in known),
        without_label={
            target.name: lacking
            for target in learned.values()
            if (lacking := tuple(patient for patient in slides_of if patient not in labelled(target)))
        },
        without_bag=tuple(slide for slide in slides.patient_of if slide not in present),
        without_row=tuple(sorted(present - set(slides.patient_of))),
        refused=refused,
    )


def labelled(target: Target) -> Mapping[str, Any]:
    """Return what is known of each patient who has a label on the target."""
    return target.time if isinstance(target, Survival) else target.values
