"""Which models stand on a board: runs sorted into models, seeds and folds, under names that tell them apart."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from stexpr.errors import ProtocolError
from stexpr.evaluate.protocol import REQUIRED, flat
from stexpr.evaluate.records import Run, RunRecord, SlideRun

__all__ = ["complete_models"]


R = TypeVar("R", Run, SlideRun)


def complete_models(
    runs: Sequence[R], required: Mapping[str, str] = REQUIRED
) -> tuple[dict[str, dict[int, list[R]]], list[str]]:
    """Sort runs by model, seed and fold, and set aside the models and seeds that lack a fold others have.

    A model is a set of settings, seed and fold apart; models of one label are told apart by what differs.

    Args:
        runs: Comparable runs.
        required: Label by kind of the baselines that must be complete.

    Returns:
        Runs in the order of folds, by model label and seed; and a sentence for each model or copy set aside.

    Raises:
        ProtocolError: A model, seed and fold has two runs of unlike configuration, or a baseline lacks folds.
    """
    cells: dict[tuple[str, int], dict[int, R]] = defaultdict(dict)
    notes: list[str] = []
    for run in sorted(runs, key=lambda run: (run.record.created, str(run.folder))):
        record = run.record
        there = cells[(record.settings_hash, record.seed)].setdefault(record.fold.index, run)
        if there is run:
            continue
        if there.record.config_hash != record.config_hash:
            raise ProtocolError(
                f"{record.model_label}, seed {record.seed}, fold {record.fold.index} has two runs of unlike configuration "
                f"({there.folder} and {run.folder}); move one away"
            )
        notes.append(f"{run.folder.name} is a second copy of {there.folder.name} and was not counted.")
    labels = _labels([run.record for run in runs])
    folds = sorted({run.record.fold.index for run in runs})
    complete: dict[str, dict[int, list[R]]] = defaultdict(dict)
    for (settings, seed), by_fold in sorted(cells.items(), key=lambda item: (labels[item[0][0]], item[0][1])):
        missing = [fold for fold in folds if fold not in by_fold]
        if missing:
            missed = ", ".join(str(fold) for fold in missing)
            notes.append(f"Incomplete, not ranked: {labels[settings]}, seed {seed} lacks fold {missed}; start its study again.")
        else:
            complete[labels[settings]][seed] = [by_fold[fold] for fold in folds]
    kinds = {next(iter(seeds.values()))[0].record.model["kind"] for seeds in complete.values()}
    for kind, name in required.items():
        if kind not in kinds:
            raise ProtocolError(
                f"the baseline {name} lacks folds that other models have; run stexpr train on the same study, which adds them"
            )
    return complete, notes


def _labels(records: Iterable[RunRecord]) -> dict[str, str]:
    """Name each model; models that share a label are told apart by the settings in which they differ."""
    variants: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for record in records:
        variants[record.model_label][record.settings_hash] = flat({"model": record.model, **record.settings})
    labels: dict[str, str] = {}
    for label, settings in variants.items():
        keys = sorted({key for values in settings.values() for key in values})
        differing = [key for key in keys if len({repr(values.get(key)) for values in settings.values()}) > 1]
        leaves = Counter(key.rsplit(".", 1)[-1] for key in differing)
        for identity, values in settings.items():
            parts = []
            for key in (key for key in differing if key in values):  # one that came later is not there at its default
                leaf = key.rsplit(".", 1)[-1]
                parts.append(f"{leaf if leaves[leaf] == 1 else key}={values[key]}")
            labels[identity] = f"{label} ({', '.join(parts)})" if parts else label
    return labels
