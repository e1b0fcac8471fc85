"""`record.json`: what one run was and what it scored, in one file a leaderboard can be built from.

A run folder holds `config.yaml`, `metrics.jsonl`, `model/`, `predictions.h5ad`, `per_gene.parquet`, `bootstrap.parquet` and
`record.json`; the record is written last and by replacement, so it is the only mark of a run that finished.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

from stexpr.config import validated
from stexpr.config.files import write_whole
from stexpr.errors import ConfigError, DataError
from stexpr.evaluate.run_record import FORMAT, SLIDES, Record, RunRecord, SlideRecord, Value

__all__ = [
    "Record",
    "Run",
    "RunRecord",
    "Runs",
    "SlideRecord",
    "SlideRun",
    "Value",
    "read_any_record",
    "read_predictions",
    "read_record",
    "read_records",
    "write_record",
]

RECORD = "record.json"
PREDICTIONS = "predictions.h5ad"
CONFIG = "config.yaml"
FOLDS = "folds.json"
MODEL = "model"


class Run(NamedTuple):
    """A finished run of a study of spots: its folder and its record."""

    folder: Path
    record: Record


class SlideRun(NamedTuple):
    """A finished run of a study of slides: its folder and its record."""

    folder: Path
    record: SlideRecord


@dataclass(frozen=True)
class Runs:
    """What a folder of runs holds; runs without a readable record are named with the reason, never hidden."""

    complete: tuple[Run, ...]
    incomplete: tuple[tuple[Path, str], ...]
    slides: tuple[SlideRun, ...] = ()

    def separated(self) -> dict[tuple[str, str, str, str], list[Run]]:
        """Group the finished runs by task, protocol, cohort and split; only runs of one group may share a table."""
        groups: dict[tuple[str, str, str, str], list[Run]] = {}
        for run in self.complete:
            record = run.record
            key = (record.task, record.protocol_hash, record.cohort.hash, record.split_hash)
            groups.setdefault(key, []).append(run)
        return groups


def read_predictions(folder: Path, *, backed: bool = False) -> Any:
    """Read the predictions of a run.

    Args:
        folder: The run.
        backed: Leave the matrices on disk; the caller closes `.file`.

    Returns:
        An AnnData, as `inference.predictions_anndata` makes it.

    Raises:
        DataError: The file is missing or unreadable.
    """
    import anndata

    path = folder / PREDICTIONS
    if not path.is_file():
        raise DataError(f"{folder} lacks {PREDICTIONS}; delete the folder and train again")
    try:
        return anndata.read_h5ad(path, backed="r" if backed else None)
    except Exception as err:  # h5py and anndata raise many kinds for a damaged file
        raise DataError(f"{path} cannot be read ({err}); delete the folder and train again") from err


def write_record(folder: Path, record: RunRecord) -> Path:
    """Write `record.json` into a run folder, whole or not at all; call it last.

    Raises:
        DataError: The folder cannot be written.
    """
    text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / RECORD


def read_record(folder: Path) -> Record:
    """Read the record of one run of a study of spots.

    Raises:
        DataError: The file is missing, not a record, of a newer stexpr, or of a study of slides.
    """
    record = read_any_record(folder)
    if not isinstance(record, Record):
        raise DataError(f"{folder} is a run of a study of slides, which has no spots; give one of a study of spots")
    return record


def read_any_record(folder: Path) -> Record | SlideRecord:
    """Read the record of one run of any study.

    Raises:
        DataError: The file is missing, not a record, or of a newer stexpr.
    """
    path = folder / RECORD
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{folder} has no {RECORD}: the run did not finish; start it again to resume") from None
    except OSError as err:
        raise DataError(f"cannot read {path}: {err.strerror or err}") from err
    except ValueError as err:  # covers JSON and text decoding
        raise DataError(f"{path} is not JSON: {err}; run this fold again") from err
    version = values.get("format") if isinstance(values, dict) else None
    if not isinstance(version, int):
        raise DataError(f"{path} is not a record of stexpr: it states no format")
    if version > FORMAT:
        raise DataError(f"{path} has format {version}, this stexpr reads up to {FORMAT}; install a newer stexpr")
    kind = SlideRecord if values.get("task") == SLIDES else Record
    try:
        return cast(Record | SlideRecord, validated(kind, values, str(path)))
    except ConfigError as err:
        raise DataError(f"not a valid record: {err}") from err


def read_records(folder: Path) -> Runs:
    """Read the records of all runs directly below a folder, in the order of their names.

    Args:
        folder: Such as `runs/`, whose subfolders are runs. Folders whose names start with a dot are not runs.

    Returns:
        Finished runs of either kind, and unfinished or unreadable ones with the reason.

    Raises:
        DataError: The folder does not exist or holds no run.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give the folder that holds the runs, such as runs/")
    complete: list[Run] = []
    slides: list[SlideRun] = []
    incomplete: list[tuple[Path, str]] = []
    for run in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            record = read_any_record(run)
        except DataError as err:
            incomplete.append((run, str(err)))
            continue
        if isinstance(record, SlideRecord):
            slides.append(SlideRun(run, record))
        else:
            complete.append(Run(run, record))
    if not complete and not slides and not incomplete:
        raise DataError(f"{folder} holds no run; make some with stexpr train")
    return Runs(tuple(complete), tuple(incomplete), tuple(slides))
