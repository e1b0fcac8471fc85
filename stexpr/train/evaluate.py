"""Scores of finished runs, computed again from their predictions."""

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pandas as pd

from stexpr.errors import DataError
from stexpr.evaluate.gene_scores import SCORING
from stexpr.evaluate.records import PREDICTIONS, RECORD, Record, read_predictions, read_record, write_record
from stexpr.evaluate.score import BOOTSTRAP_FILE, PER_GENE_FILE, Pooling, Scores, read_per_gene, score
from stexpr.types import Progress, silent

TOLERANCE = 1e-9
"""The same predictions file gives the same numbers but for the order of floating-point sums."""


def evaluate_runs(folder: Path, *, refresh: bool = False, progress: Progress = silent) -> Iterator[str]:
    """Score runs again and compare the numbers with those on record; score tables that are missing are written again.

    Args:
        folder: One run, or a folder of runs.
        refresh: Write what this version of stexpr scores instead of comparing, into the tables and the record.
        progress: Shows the runs done.

    Yields:
        One line per run.

    Raises:
        DataError: There is no finished run, a file of one is missing, or its numbers are not those of its predictions.
    """
    runs = [folder] if (folder / RECORD).is_file() else sorted(path.parent for path in folder.glob(f"*/{RECORD}"))
    if not runs:
        raise DataError(f"{folder} holds no finished run (no {RECORD}); train one with stexpr train")
    for run in progress(runs, "evaluating runs", len(runs)):
        yield _refresh(run) if refresh else _evaluate(run)


def _scored(run: Path) -> tuple[Record, Scores]:
    record = read_record(run)
    return record, score(read_predictions(run), pooling=cast(Pooling, record.protocol["pooling"]))


def _refresh(run: Path) -> str:
    record, scores = _scored(run)
    scores.write(run)
    write_record(run, record.model_copy(update={"values": scores.summary, "scoring": SCORING}))
    before, after = (values["pearson"].value for values in (record.values, scores.summary))
    return f"{_name(run, record)}: r was {_r(before)}, is {_r(after)}"


def _evaluate(run: Path) -> str:
    record, scores = _scored(run)
    if record.scoring != SCORING:
        raise DataError(
            f"{run} was scored with {record.scoring or 'settings it does not tell'}, this stexpr scores with {SCORING}; "
            f"stexpr evaluate --refresh {run} writes its scores anew"
        )
    for name, value in scores.summary.items():
        on_record = record.values.get(name)
        if on_record is None or not _same(value.value, on_record.value):
            raise DataError(
                f"{run}: the predictions give {name} = {value.value}, the record says "
                f"{on_record.value if on_record else 'nothing'}; one of them was changed"
            )
    _compare_tables(run, scores)
    values = ", ".join(f"{name} {value.value:.4f}" for name, value in scores.summary.items() if value.value is not None)
    return f"{_name(run, record)}: as recorded ({values})"


def _name(run: Path, record: Record) -> str:
    return f"{run.name} {record.model_label}, fold {record.fold.index}"


def _r(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def _compare_tables(run: Path, scores: Scores) -> None:
    if not all((run / name).is_file() for name in (PER_GENE_FILE, BOOTSTRAP_FILE)):
        scores.write(run)
        return
    try:
        there = read_per_gene(run)
        pd.testing.assert_frame_equal(scores.per_gene, there, rtol=TOLERANCE, check_dtype=False, check_like=True)
    except AssertionError as err:
        raise DataError(f"{run}: {PER_GENE_FILE} does not hold the scores of {PREDICTIONS}; one of them was changed") from err


def _same(one: float | None, other: float | None) -> bool:
    if one is None or other is None:
        return one is other
    return abs(one - other) <= TOLERANCE * max(1.0, abs(one))
