"""The lines of a slide board: each head's held-out predictions, one cross-validation at a time.

A cross-validation is all folds of one seed and one partition. Seeds and repeated partitions hold the same patients again, so
each is scored by itself; scores are averaged afterwards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from stexpr.errors import ProtocolError
from stexpr.evaluate.protocol import flat
from stexpr.evaluate.records import SlideRecord, SlideRun
from stexpr.evaluate.slides.held_targets import TestedTarget, tested_targets
from stexpr.evaluate.slides.results import SlideResults
from stexpr.types import Progress, silent

__all__ = ["CrossValidation", "HeadLine", "read_heads"]


@dataclass(frozen=True)
class CrossValidation:
    """One head, one seed, one partition of the patients.

    Attributes:
        seed: Of the trainings.
        repeat: Which partition, from 0.
        targets: By name, None where no test patient has a label.
        patients: By patient, as text: site, confounders, subgroups, covariates.
    """

    seed: int
    repeat: int
    targets: Mapping[str, TestedTarget | None]
    patients: pd.DataFrame


@dataclass(frozen=True)
class HeadLine:
    """One head of the board: its records by seed and fold, and its cross-validations, seeds and then partitions in order."""

    label: str
    records: dict[int, list[SlideRecord]]
    validations: tuple[CrossValidation, ...]

    @property
    def first(self) -> SlideRecord:
        """Any record of the head, for what all of them share."""
        return next(iter(self.records.values()))[0]

    @property
    def is_baseline(self) -> bool:
        """Whether it is a thing to beat, such as a head that sees colors only."""
        return self.first.kind == "baseline"

    def tested(self, target: str) -> list[TestedTarget]:
        """Return what each cross-validation says of a target."""
        found = [validation.targets.get(target) for validation in self.validations]
        return [one for one in found if one is not None]

    def baseline_among(self, lines: Sequence["HeadLine"]) -> "HeadLine | None":
        """Find the baseline this head is held against: the one that differs in its instances alone, else of the same head.

        Returns:
            The first baseline where no other fits; None where there is none.
        """
        baselines = [line for line in lines if line.is_baseline]
        like = [line for line in baselines if _but_for_instances(line.first) == _but_for_instances(self.first)]
        same = [line for line in baselines if line.first.model.get("head") == self.first.model.get("head")]
        return next(iter([*like, *same, *baselines]), None)


def read_heads(models: Mapping[str, Mapping[int, list[SlideRun]]], progress: Progress = silent) -> list[HeadLine]:
    """Read the predictions of heads.

    Args:
        models: By label and seed, the runs of all folds, as `complete_models` sorts them.
        progress: Shows the heads read.

    Returns:
        One line per head, in the order given.

    Raises:
        DataError: A run lacks a file, or a labeled test patient a prediction.
        LeakageError: A patient is tested twice in one cross-validation.
        ProtocolError: Two heads are not scored on the same patients and labels.
    """
    lines, truth = [], dict[tuple[int, str], tuple[str, TestedTarget | None]]()
    for label, seeds in progress(models.items(), "reading predictions", len(models)):
        validations = []
        for seed, runs in seeds.items():
            by_repeat: dict[int, dict[str, SlideResults]] = {}
            for run in runs:
                repeat, fold = divmod(run.record.fold.index, _k(run.record))
                by_repeat.setdefault(repeat, {})[str(fold)] = SlideResults.read(run.folder)
            for repeat, folds in by_repeat.items():
                targets = tested_targets(folds)
                for name, target in targets.items():
                    other, known = truth.setdefault((repeat, name), (label, target))
                    if not _same_truth(known, target):
                        raise ProtocolError(
                            f"{label} and {other} are not scored on the same patients and labels of {name}; train the older "
                            "of them again on the tables as they are now"
                        )
                validations.append(CrossValidation(seed, repeat, targets, _patients(folds)))
        records = {seed: [run.record for run in runs] for seed, runs in seeds.items()}
        lines.append(HeadLine(label, records, tuple(validations)))
    return lines


def _k(record: SlideRecord) -> int:
    return int(flat(record.protocol).get("split.k") or 1)


def _but_for_instances(record: SlideRecord) -> tuple[object, ...]:
    model = {key: value for key, value in record.model.items() if key not in ("instances", "finetune")}
    return repr(sorted(flat(model).items())), record.bags.encoder


def _same_truth(one: TestedTarget | None, other: TestedTarget | None) -> bool:
    if one is None or other is None:
        return one is other
    same = one.held_out == other.held_out and one.info.classes == other.info.classes
    return same and all((a == b).all() for a, b in zip(one.truth, other.truth, strict=True))


def _patients(folds: Mapping[str, SlideResults]) -> pd.DataFrame:
    """What is known of each patient; the same in every fold."""
    table = pd.concat([results.patients for results in folds.values()]).drop_duplicates("patient").set_index("patient")
    return table.drop(columns=["part", "n_slides", "n_patches"]).sort_index()
