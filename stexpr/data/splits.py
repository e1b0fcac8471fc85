"""Folds over patients, and the inner partitions that choose the number of epochs.

The outer partition decides what is tested; the inner ones live wholly inside the training patients. A patient, section
or spot on two sides cannot be represented: building such a fold raises `LeakageError`.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pandas as pd

from stexpr.config import SplitConfig, ValidationConfig, content_hash
from stexpr.config.files import write_whole
from stexpr.data.geometry import distance_to, spatial_block
from stexpr.errors import ConfigError, DataError, LeakageError, nearest

InnerRule: TypeAlias = Literal["patient", "section", "block", "epochs", "test"]
Selection: TypeAlias = dict[str, tuple[str, ...] | None]
"""Spots by section: the barcodes, or None for all spots of the section."""
Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class InnerSplit:
    """One partition of the training spots into those that train and those that choose the epoch."""

    train: Selection
    validation: Selection
    left_out: int = 0
    """Spots in the buffer between the two, used by neither."""

    def __post_init__(self) -> None:
        if not self.train or not self.validation:
            raise DataError("an inner split needs training and validation spots")
        for section in self.train.keys() & self.validation.keys():
            train, validation = self.train[section], self.validation[section]
            if train is None or validation is None or set(train) & set(validation):
                raise LeakageError(f"spots of section {section} both train and validate")


@dataclass(frozen=True)
class Fold:
    """One partition of a cohort's patients.

    Attributes:
        index: Position among the folds of the study.
        train: Sections of each training patient.
        test: Sections of each test patient.
        inner_rule: How the number of epochs is chosen; `epochs` means it was set in advance, `test` that a leaky protocol
            chooses it on the test sections.
        inner: The partitions of the training spots that choose it.
    """

    index: int
    train: Mapping[str, tuple[str, ...]]
    test: Mapping[str, tuple[str, ...]]
    inner_rule: InnerRule = "epochs"
    inner: tuple[InnerSplit, ...] = ()

    def __post_init__(self) -> None:
        for patient in self.train.keys() & self.test.keys():
            raise LeakageError(f"patient {patient!r} is in the training and the test set of fold {self.index}")
        for section in set(self.train_sections) & set(self.test_sections):
            raise LeakageError(f"section {section!r} is in the training and the test set of fold {self.index}")
        if not self.train or not self.test:
            raise DataError(f"fold {self.index} has no {'training' if not self.train else 'test'} patient")
        known = set(self.train_sections) | (set(self.test_sections) if self.inner_rule == "test" else set())
        for split in self.inner:
            for section in (split.train.keys() | split.validation.keys()) - known:
                raise LeakageError(f"the inner split of fold {self.index} uses section {section!r}, which is not in training")

    @property
    def train_sections(self) -> tuple[str, ...]:
        """Training sections, patient by patient."""
        return tuple(section for sections in self.train.values() for section in sections)

    @property
    def test_sections(self) -> tuple[str, ...]:
        """Test sections, patient by patient."""
        return tuple(section for sections in self.test.values() for section in sections)

    @property
    def hash(self) -> str:
        """Identify the outer partition, which is what models on one board must share."""
        return content_hash([sorted(self.train_sections), sorted(self.test_sections), sorted(self.test)])

    def outer(self) -> "Fold":
        """Return the fold without its inner partitions, for models that choose no epochs."""
        return replace(self, inner_rule="epochs", inner=())

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Fold":
        """Read what `to_dict` wrote, refusing leaks as the constructor does."""
        try:
            return cls(
                index=int(values["index"]),
                train={patient: tuple(sections) for patient, sections in values["train"].items()},
                test={patient: tuple(sections) for patient, sections in values["test"].items()},
                inner_rule=values["inner_rule"],
                inner=tuple(
                    InnerSplit(_selection(inner["train"]), _selection(inner["validation"]), int(inner["left_out"]))
                    for inner in values["inner"]
                ),
            )
        except (KeyError, TypeError, AttributeError) as err:
            raise DataError(f"not a fold written by stexpr: {err!r}") from err


def _selection(values: Mapping[str, Sequence[str] | None]) -> Selection:
    return {section: None if barcodes is None else tuple(barcodes) for section, barcodes in values.items()}


def _whole(patients: Mapping[str, tuple[str, ...]]) -> Selection:
    return {section: None for sections in patients.values() for section in sections}


def write_folds(path: Path, folds: Iterable[Fold]) -> None:
    """Write folds as JSON, whole or not at all."""
    text = json.dumps({"format": 1, "folds": [fold.to_dict() for fold in folds]}, indent=1)
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def read_folds(path: Path) -> tuple[Fold, ...]:
    """Read folds, refusing leaks.

    Raises:
        DataError: Not such a file.
        LeakageError: A patient, section or spot stands on two sides.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        folds = values["folds"] if values["format"] == 1 else None
    except (OSError, ValueError, KeyError, TypeError) as err:
        raise DataError(f"{path} holds no folds written by stexpr") from err
    if folds is None:
        raise DataError(f"{path} has format {values['format']!r}; this version of stexpr reads format 1")
    return tuple(Fold.from_dict(fold) for fold in folds)


def make_folds(
    patient_of: Mapping[str, str],
    split: SplitConfig,
    validation: ValidationConfig,
    *,
    spots_of: Callable[[str], pd.DataFrame],
    window_um: float,
) -> tuple[Fold, ...]:
    """Partition a cohort.

    Args:
        patient_of: Patient of each section, in the order of the cohort.
        split: The outer partition.
        validation: The inner ones.
        spots_of: Spots of a section, indexed by barcode, with columns `x_um` and `y_um`; read only for spatial blocks.
        window_um: Side of the field of view, the least distance between training and validation spots of one section.

    Returns:
        The folds; every patient is tested at most once, except where a file says otherwise.

    Raises:
        DataError: Too few patients for the split, or no inner partition of the kind asked for exists.
        ConfigError: A named patient does not exist.
    """
    if split.file is not None:
        return _folds_from_file(split.file, patient_of)
    sections: dict[str, tuple[str, ...]] = {}
    for section, patient in patient_of.items():
        sections[patient] = (*sections.get(patient, ()), section)
    folds = []
    for index, tested in enumerate(_tested_together(list(sections), split)):
        train = {patient: own for patient, own in sections.items() if patient not in tested}
        test = {patient: sections[patient] for patient in tested}
        if validation.rule == "test":
            folds.append(Fold(index, train, test, "test", (InnerSplit(_whole(train), _whole(test)),)))
            continue
        rule, inner = _inner_splits(train, validation, spots_of, window_um)
        folds.append(Fold(index, train, test, rule, inner))
    return tuple(folds)


def _folds_from_file(path: Path, patient_of: Mapping[str, str]) -> tuple[Fold, ...]:
    folds = read_folds(path)
    for fold in folds:
        for patient, sections in (*fold.train.items(), *fold.test.items()):
            for section in sections:
                if patient_of.get(section) != patient:
                    raise LeakageError(
                        f"{path} gives section {section!r} to patient {patient!r}, the cohort to {patient_of.get(section)!r}; "
                        "the folds were written for another cohort"
                    )
    return folds


def _tested_together(patients: Sequence[str], split: SplitConfig) -> list[tuple[str, ...]]:
    if len(patients) < 2:
        raise DataError(
            f"the cohort has one patient only ({', '.join(patients)}): no model can be tested on a patient it has not seen; "
            "add the sections of another patient"
        )
    if split.rule == "leave_one_patient_out":
        return [(patient,) for patient in patients]
    if split.rule == "fixed":
        for patient in split.test_patients:
            if patient not in patients:
                raise ConfigError(f"protocol.split.test_patients names {patient!r}; {nearest(patient, patients)}")
        return [split.test_patients]
    if split.k > len(patients):
        raise DataError(f"{len(patients)} patients cannot make k = {split.k} folds; lower protocol.split.k")
    order = np.random.default_rng(split.seed).permutation(len(patients))
    return [tuple(patients[i] for i in sorted(part)) for part in np.array_split(order, split.k)]


def _inner_splits(
    train: Mapping[str, tuple[str, ...]],
    validation: ValidationConfig,
    spots_of: Callable[[str], pd.DataFrame],
    window_um: float,
) -> tuple[InnerRule, tuple[InnerSplit, ...]]:
    all_sections = [section for sections in train.values() for section in sections]
    rule: InnerRule
    if validation.rule == "auto":
        rule = "patient" if len(train) > 1 else "section" if len(all_sections) > 1 else "block"
    else:
        rule = validation.rule
    if rule == "epochs":
        return rule, ()
    if rule == "block":
        tables = {section: spots_of(section) for section in all_sections}
        splits = [_block_split(tables, validation.fraction, i, validation.splits, window_um) for i in range(validation.splits)]
        return rule, tuple(splits)
    groups = list(train.values()) if rule == "patient" else [(section,) for section in all_sections]
    if len(groups) < max(2, validation.splits):
        raise DataError(
            f"validation by {rule} needs at least {max(2, validation.splits)} training {rule}s, but a fold has {len(groups)}; "
            "set protocol.validation.rule to auto, block or epochs"
        )
    n_held_out = min(max(1, round(validation.fraction * len(groups))), len(groups) - 1)
    splits = []
    for i in range(validation.splits):
        held_out = {(i * n_held_out + j) % len(groups) for j in range(n_held_out)}
        splits.append(
            InnerSplit(
                train={section: None for j, group in enumerate(groups) if j not in held_out for section in group},
                validation={section: None for j in sorted(held_out) for section in groups[j]},
            )
        )
    return rule, tuple(splits)


def _block_split(tables: Mapping[str, pd.DataFrame], fraction: float, i: int, n_splits: int, window_um: float) -> InnerSplit:
    train: Selection = {}
    held_out: Selection = {}
    left_out = 0
    for section, spots in tables.items():
        barcodes = spots.index.to_numpy(dtype=str)
        xy = spots[["x_um", "y_um"]].to_numpy(dtype=float)
        block = spatial_block(xy, fraction, start=i / n_splits)
        apart = distance_to(xy, xy[block]) >= window_um
        held_out[section] = tuple(barcodes[block].tolist())
        train[section] = tuple(barcodes[~block & apart].tolist())
        left_out += int((~block & ~apart).sum())
        if not train[section] or not held_out[section]:
            raise DataError(
                f"section {section} ({len(spots)} spots) is too small to keep a validation block {window_um:.0f} um "
                "(one window) away from its training spots; lower input.window_px or set protocol.validation.rule=epochs"
            )
    return InnerSplit(train, held_out, left_out)
