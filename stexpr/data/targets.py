"""What a slide head learns: labels and survival times of patients.

A label that is missing is absent, never False or NaN, and its patient is named.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeAlias

import numpy as np

from stexpr.data.tables import ClinicalTable, named
from stexpr.errors import DataError, DataWarning

__all__ = ["Labels", "Survival", "read_labels", "read_survival"]

Kind: TypeAlias = Literal["binary", "multiclass", "continuous"]

TRUE: Final = frozenset({"mut", "driver", "positive", "pos", "yes", "true", "1", "1.0"})
FALSE: Final = frozenset({"wt", "nodriver", "negative", "neg", "no", "false", "0", "0.0"})
OBSERVED: Final = frozenset({"dead", "deceased", "event", "yes", "true", "1", "1.0"})
CENSORED: Final = frozenset({"alive", "living", "censored", "no", "false", "0", "0.0"})
MOSTLY_EVENTS: Final = 0.95
UNITS_APART: Final = 10.0
"""Times whose medians differ by more are taken for days and months (a factor of 30.4)."""
_FEW: Final = 10


@dataclass(frozen=True)
class Labels:
    """One label per patient.

    Attributes:
        name: The target, as its column is called.
        kind: What the values are: bool, class name or float.
        values: By patient.
        missing: Patients without a label.
    """

    name: str
    kind: Kind
    values: Mapping[str, Any]
    missing: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        found = sorted({str(value) for value in self.values.values()})
        if len(found) < 2:
            what = f"is {found[0]} in all {len(self.values)} patients" if found else "has no label in any patient"
            raise DataError(f"target {self.name!r} {what}; a head needs patients of two kinds, choose another target")

    @property
    def patients(self) -> tuple[str, ...]:
        """Every patient of the table, with a label or without."""
        return (*self.values, *self.missing)

    def among(self, patients: Iterable[str]) -> "Labels":
        """Return the labels of these patients only.

        Raises:
            DataError: They are all equal, or none is left.
        """
        kept = set(patients)
        values = {patient: value for patient, value in self.values.items() if patient in kept}
        return replace(self, values=values, missing=tuple(patient for patient in self.missing if patient in kept))


@dataclass(frozen=True)
class Survival:
    """Time to an event, or to the last look at a patient in whom it was not seen.

    Attributes:
        name: The endpoint, as its event column is called.
        time: By patient, above 0, in the unit of the table.
        event: By patient; True = observed, False = censored.
        missing: Patients whose time or event is missing.
        zero: Patients left out because their time is 0.
    """

    name: str
    time: Mapping[str, float]
    event: Mapping[str, bool]
    missing: tuple[str, ...] = ()
    zero: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.time.keys() != self.event.keys():
            raise DataError(f"target {self.name!r} has times and events of different patients; give both for each")
        if wrong := [patient for patient, time in self.time.items() if not (np.isfinite(time) and time > 0)]:
            raise DataError(
                f"target {self.name!r} has times that are not above 0 in {named('patient', wrong)}; correct the table"
            )
        if not any(self.event.values()):
            raise DataError(
                f"target {self.name!r} has no events in {len(self.event)} patients; a survival head learns from events: check "
                "that 1 means observed, or choose another endpoint"
            )

    @property
    def patients(self) -> tuple[str, ...]:
        """Every patient of the table, with a time or without."""
        return (*self.time, *self.missing, *self.zero)

    def among(self, patients: Iterable[str]) -> "Survival":
        """Return the times and events of these patients only.

        Raises:
            DataError: None of them has an event.
        """
        kept = set(patients)
        return replace(
            self,
            time={patient: time for patient, time in self.time.items() if patient in kept},
            event={patient: event for patient, event in self.event.items() if patient in kept},
            missing=tuple(patient for patient in self.missing if patient in kept),
            zero=tuple(patient for patient in self.zero if patient in kept),
        )


def read_labels(
    table: ClinicalTable, column: str, kind: Kind, *, positive: str | None = None, missing: Sequence[str] = ()
) -> Labels:
    """Give the cells of a column their meaning.

    Args:
        table: From `read_clinical`.
        column: The target.
        kind: `binary` makes True and False of MUT/WT, DRIVER/NODRIVER, positive/negative, yes/no, true/false, 1/0 in any case,
            `multiclass` keeps the text, `continuous` makes finite numbers.
        positive: For other binary columns, the cell that is True; every other is False.
        missing: Cells that are no label, such as `Equivocal`.

    Raises:
        DataError: There is no such column, a cell has another meaning, or all labels are equal.
    """
    cells = {patient: cell for patient, cell in table.column(column).items() if cell not in missing}
    if positive is not None and positive not in cells.values():
        raise DataError(f"no patient of {table.path} has {column} = {positive!r}; found: {_found(cells)}")
    values: dict[str, Any] = {}
    for patient, cell in cells.items():
        if kind == "multiclass":
            values[patient] = cell
        elif kind == "continuous":
            values[patient] = _number(table, column, patient, cell)
        elif positive is not None:
            values[patient] = cell == positive
        else:
            values[patient] = _truth(cell, TRUE, FALSE)
            if values[patient] is None:
                raise DataError(
                    f"{column} of patient {patient} in {table.path} is {cell!r}, neither of MUT/WT, positive/negative, yes/no, "
                    f"1/0; name the positive= cell, and those that are missing=; found: {_found(cells)}"
                )
    return Labels(column, kind, values, tuple(patient for patient in table.patients if patient not in values))


def read_survival(
    table: ClinicalTable, event: str, time: str | None = None, *, group_of: Mapping[str, str] | None = None
) -> Survival:
    """Read times and events, as TCGA-CDR's `OS` and `OS.time`.

    Patients of time 0 are left out, named, with a warning: nobody is at risk before them. Two more warnings tell what may be
    wrong with a table: more than 95 % events (1 may stand for censored), and times that look like days and months mixed.
    Nothing is flipped or rescaled.

    Args:
        table: From `read_clinical`.
        event: Column of events: 1 or DECEASED observed, 0 or LIVING censored; cBioPortal's `1:DECEASED` is understood.
        time: Column of times; None takes `<event>.time`.
        group_of: Patient -> site; mixed units are also looked for between sites.

    Raises:
        DataError: A column is missing, a cell has no such meaning, a time is negative, or no event was observed.
    """
    events, times = table.column(event), table.column(f"{event}.time" if time is None else time)
    observed: dict[str, bool] = {}
    lasted: dict[str, float] = {}
    for patient in table.patients:
        if patient in events and patient in times:
            truth = _truth(events[patient].split(":")[0], OBSERVED, CENSORED)
            if truth is None:
                raise DataError(
                    f"{event} of patient {patient} in {table.path} is {events[patient]!r}; allowed: 1 (observed) and 0 "
                    "(censored), DECEASED and LIVING, true and false; recode the column"
                )
            observed[patient], lasted[patient] = truth, _number(table, time or f"{event}.time", patient, times[patient])
    zero = tuple(patient for patient, value in lasted.items() if value == 0)
    survival = Survival(
        event,
        {patient: value for patient, value in lasted.items() if value != 0},
        {patient: truth for patient, truth in observed.items() if lasted[patient] != 0},
        tuple(patient for patient in table.patients if patient not in lasted),
        zero,
    )
    for trouble in _doubts(survival, group_of or {}):
        warnings.warn(f"{table.path}: {trouble}", DataWarning, stacklevel=2)
    return survival


def _truth(cell: str, true: frozenset[str], false: frozenset[str]) -> bool | None:
    word = cell.strip().lower()
    return True if word in true else False if word in false else None


def _number(table: ClinicalTable, column: str, patient: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise DataError(f"{column} of patient {patient} in {table.path} is {cell!r}, not a finite number; correct the table")
    return value


def _found(cells: Mapping[str, str]) -> str:
    return ", ".join(sorted(set(cells.values()))[:_FEW])


def _doubts(survival: Survival, group_of: Mapping[str, str]) -> list[str]:
    doubts = []
    if survival.zero:
        doubts.append(f"{survival.name} leaves out {named('patient', survival.zero)} of time 0")
    events = sum(survival.event.values())
    if events > MOSTLY_EVENTS * len(survival.event):
        doubts.append(
            f"{survival.name} has {events} events in {len(survival.event)} patients; is the column flipped? 1 means observed"
        )
    whole = {patient: "whole numbers" if time == int(time) else "fractions" for patient, time in survival.time.items()}
    for groups in (whole, {patient: group_of[patient] for patient in survival.time if patient in group_of}):
        times: dict[str, list[float]] = {}
        for patient, group in groups.items():
            times.setdefault(group, []).append(survival.time[patient])
        medians = {group: float(np.median(values)) for group, values in times.items() if len(values) >= _FEW}
        if not medians:
            continue
        short, long = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
        if medians[long] > UNITS_APART * medians[short]:
            doubts.append(
                f"{survival.name} has a median time of {medians[short]:g} in {short} and of {medians[long]:g} in {long}; are "
                "days and months mixed?"
            )
    return doubts
