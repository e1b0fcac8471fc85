"""Folds over the patients of a slide cohort: stratified for several rare labels, with sites kept whole where asked for.

A fold is a `Fold` as for sections, whose sections are slides. What no partition can do, and what this one did not reach, is
named target by target, since an AUROC of a fold without a positive does not exist.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from jaxtyping import Int

from stexpr.data.splits import Fold, InnerSplit
from stexpr.data.stratify import deal
from stexpr.data.tables import named
from stexpr.data.targets import Labels, Survival
from stexpr.errors import DataError, LeakageError

__all__ = ["SlideFolds", "TargetBalance", "make_slide_folds"]

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_DRAWS: Final = 20
"""Draws before a repeat is given up as one that exists already."""


@dataclass(frozen=True)
class TargetBalance:
    """How one class of a target lies in the folds.

    Attributes:
        target: Name of the target.
        label: The class: True or False of a binary label, a class of several, True (event) of a survival target.
        tested: Patients of the class in the test set of each fold.
        infeasible: Why no partition puts one into every fold; empty where one may exist.
        inner_gaps: Inner validation sets without the class, of all folds.
    """

    target: str
    label: str
    tested: tuple[int, ...]
    infeasible: str = ""
    inner_gaps: int = 0

    @property
    def gaps(self) -> tuple[int, ...]:
        """Folds without the class."""
        return tuple(index for index, n in enumerate(self.tested) if n == 0)


@dataclass(frozen=True)
class SlideFolds:
    """Partitions of the patients, one after the other where repeated.

    Attributes:
        folds: All folds, `k` of each repeat.
        k: Folds of one partition.
        site_of: Patient -> site where sites are kept whole, else empty.
        balance: Every class of every target.
        left_out: Targets that have no classes to balance (continuous ones).
    """

    folds: tuple[Fold, ...]
    k: int
    site_of: Mapping[str, str]
    balance: tuple[TargetBalance, ...]
    left_out: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for fold in self.folds:
            _refuse_shared_sites(self.site_of, fold.train, fold.test, f"fold {fold.index}")
            patient_of = {slide: patient for patient, slides in fold.train.items() for slide in slides}
            for split in fold.inner:
                train, validation = ({patient_of[slide]: () for slide in side} for side in (split.train, split.validation))
                for patient in train.keys() & validation.keys():
                    raise LeakageError(f"patient {patient!r} is on both sides of an inner split of fold {fold.index}")
                _refuse_shared_sites(self.site_of, train, validation, f"an inner split of fold {fold.index}")

    @property
    def infeasible(self) -> dict[str, str]:
        """Targets that no partition could give every fold a patient of each class -> why."""
        return {row.target: row.infeasible for row in self.balance if row.infeasible}

    @property
    def not_reached(self) -> dict[str, tuple[int, ...]]:
        """Other targets of which some fold lacks a class -> those folds."""
        found: dict[str, set[int]] = {}
        for row in self.balance:
            if row.gaps and row.target not in self.infeasible:
                found.setdefault(row.target, set()).update(row.gaps)
        return {target: tuple(sorted(gaps)) for target, gaps in found.items()}

    def describe(self) -> str:
        """Say how even the folds are and what they lack, a line each."""
        sizes = [len(fold.test) for fold in self.folds]
        kept = f", {len(set(self.site_of.values()))} sites kept whole" if self.site_of else ""
        n = sum(sizes[: self.k])
        lines = [f"{n:,} patients, {len(self.folds)} folds of {min(sizes)} to {max(sizes)} test patients{kept}"]
        lines += [f"{target}: {why}" for target, why in self.infeasible.items()]
        lines += [
            f"{target}: a class is missing from {named('fold', [str(i) for i in gaps])}"
            for target, gaps in self.not_reached.items()
        ]
        lines += [
            f"{row.target}: {row.label} is missing from {row.inner_gaps} inner validation sets"
            for row in self.balance
            if row.inner_gaps
        ]
        lines += [f"{target}: continuous, not balanced" for target in self.left_out]
        return "\n".join(lines)


def make_slide_folds(
    slides_of: Mapping[str, tuple[str, ...]],
    targets: Mapping[str, Labels | Survival],
    *,
    k: int = 5,
    repeats: int = 1,
    inner_k: int = 0,
    site_of: Mapping[str, str] | None = None,
    seed: int = 0,
) -> SlideFolds:
    """Partition the patients of a slide cohort.

    Args:
        slides_of: Patient -> slides, as of `match_slides`; each patient is tested once in every repeat.
        targets: What is balanced: the classes of binary and multi-class labels, the events of survival targets. Missing labels
            count nowhere, continuous targets are named and not balanced. Other patients' labels do not matter.
        k: Folds of a partition.
        repeats: Partitions, all different.
        inner_k: Partitions of the training patients of each fold into those that train and those that validate; 0 makes none.
        site_of: Patient -> site; given, no site is on both sides of any partition.
        seed: Draws the partitions.

    Raises:
        DataError: Too few patients or sites for `k` or `inner_k`, a patient without site, or fewer partitions than `repeats`.
    """
    if k < 2 or repeats < 1 or inner_k < 0 or inner_k == 1:
        raise DataError(f"k={k}, repeats={repeats}, inner_k={inner_k}; allowed: k >= 2, repeats >= 1, inner_k 0 or >= 2")
    patients = list(slides_of)
    if site_of is not None and (lost := [patient for patient in patients if patient not in site_of]):
        raise DataError(f"{named('patient', lost)} have no site; add theirs, or give none to split without regard to sites")
    sites = {patient: patient if site_of is None else site_of[patient] for patient in patients}
    classes = _Classes(patients, targets)
    rng = np.random.default_rng(seed)
    folds: list[Fold] = []
    seen: set[frozenset[frozenset[str]]] = set()
    for repeat in range(repeats):
        for _ in range(_DRAWS):
            parts = _parts(patients, sites, classes, k, rng)
            partition = frozenset(frozenset(part) for part in parts)
            if partition not in seen:
                break
        else:
            raise DataError(
                f"only {repeat} different partitions into {k} folds were found, {repeats} are asked for; lower repeats or k, "
                "or do not keep sites whole"
            )
        seen.add(partition)
        for tested in parts:
            train = [patient for patient in patients if patient not in set(tested)]
            inner = _inner(slides_of, train, _parts(train, sites, classes, inner_k, rng)) if inner_k else ()
            folds.append(
                Fold(
                    index=len(folds),
                    train={patient: tuple(slides_of[patient]) for patient in train},
                    test={patient: tuple(slides_of[patient]) for patient in tested},
                    inner_rule="patient" if inner else "epochs",
                    inner=inner,
                )
            )
    kept = {} if site_of is None else sites
    return SlideFolds(
        tuple(folds), k, kept, classes.balance(folds, sites, k, whole_sites=site_of is not None), classes.left_out
    )


class _Classes:
    """Who belongs to which class of which target."""

    def __init__(self, patients: list[str], targets: Mapping[str, Labels | Survival]) -> None:
        self.row = {patient: i for i, patient in enumerate(patients)}
        self.left_out = tuple(
            name for name, target in targets.items() if not isinstance(target, Survival) and target.kind == "continuous"
        )
        self.names: list[tuple[str, str]] = []
        columns = [np.zeros((len(patients), 0), dtype=np.int64)]
        for name, target in targets.items():
            if name in self.left_out:
                continue
            values = target.event if isinstance(target, Survival) else target.values
            labels = [True] if isinstance(target, Survival) else sorted(set(values.values()), key=str)
            self.names += [(name, str(label)) for label in labels]
            columns.append(
                np.array(
                    [[patient in values and values[patient] == label for label in labels] for patient in patients],
                    dtype=np.int64,
                )
            )
        self.member: Int[Array, "P J"] = np.concatenate(columns, axis=1)

    def count(self, patients: list[str] | Mapping[str, Any]) -> Int[Array, "J"]:
        """Return how many of these patients are in each class."""
        counts: Array = self.member[[self.row[patient] for patient in patients]].sum(axis=0)
        return counts

    def balance(self, folds: list[Fold], sites: Mapping[str, str], k: int, *, whole_sites: bool) -> tuple[TargetBalance, ...]:
        """Return where each class is tested, and whether it could be in every fold."""
        tested = np.stack([self.count(fold.test) for fold in folds])
        gaps = np.zeros(len(self.names), dtype=np.int64)
        for fold in folds:
            patient_of = {slide: patient for patient, slides in fold.train.items() for slide in slides}
            for split in fold.inner:
                gaps += self.count(list({patient_of[slide]: None for slide in split.validation})) == 0
        total = self.count(sites)
        rows = []
        for j, (target, label) in enumerate(self.names):
            n_sites = len({sites[patient] for patient, i in self.row.items() if self.member[i, j]})
            why = f"only {total[j]} patients are {label}, for {k} folds" if total[j] < k else ""
            if not why and whole_sites and n_sites < k:
                why = f"the {total[j]} patients that are {label} come from {n_sites} sites only, for {k} folds"
            rows.append(TargetBalance(target, label, tuple(int(n) for n in tested[:, j]), why, int(gaps[j])))
        return tuple(rows)


def _parts(
    patients: list[str], sites: Mapping[str, str], classes: _Classes, k: int, rng: np.random.Generator
) -> list[tuple[str, ...]]:
    units: dict[str, list[str]] = {}
    for patient in patients:
        units.setdefault(sites[patient], []).append(patient)
    if len(units) < k:
        kind = "patients" if len(units) == len(patients) else f"sites ({', '.join(sorted(units))})"
        raise DataError(f"{len(units)} {kind} cannot make {k} folds; lower the number of folds")
    sizes = np.array([len(members) for members in units.values()])
    counts = np.stack([classes.count(members) for members in units.values()])
    part = deal(sizes, counts, k, rng=rng)
    held: list[set[str]] = [set() for _ in range(k)]
    for members, to in zip(units.values(), part, strict=True):
        held[to].update(members)
    return [tuple(patient for patient in patients if patient in own) for own in held]


def _inner(slides_of: Mapping[str, tuple[str, ...]], train: list[str], parts: list[tuple[str, ...]]) -> tuple[InnerSplit, ...]:
    splits = []
    for validated in parts:
        held_out = set(validated)
        splits.append(
            InnerSplit(
                train={slide: None for patient in train if patient not in held_out for slide in slides_of[patient]},
                validation={slide: None for patient in validated for slide in slides_of[patient]},
            )
        )
    return tuple(splits)


def _refuse_shared_sites(site_of: Mapping[str, str], train: Mapping[str, Any], test: Mapping[str, Any], where: str) -> None:
    if not site_of:
        return
    for site in {site_of[patient] for patient in train} & {site_of[patient] for patient in test}:
        raise LeakageError(f"site {site!r} is on both sides of {where}; its patients must stay together")
