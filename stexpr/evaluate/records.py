"""`record.json`: what one run was and what it scored, in one file a leaderboard can be built from.

A run folder holds `config.yaml`, `metrics.jsonl`, `model/`, `predictions.h5ad`, `per_gene.parquet`, `bootstrap.parquet` and
`record.json`; the record is written last and by replacement, so it is the only mark of a run that finished.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

from pydantic import Field, JsonValue, field_validator, model_validator

from stexpr.config import Strict, content_hash, validated
from stexpr.config.files import write_whole
from stexpr.errors import ConfigError, DataError

__all__ = ["Record", "Run", "Runs", "Value", "read_predictions", "read_record", "read_records", "write_record"]

FORMAT: Final = 1
RECORD = "record.json"
PREDICTIONS = "predictions.h5ad"
CONFIG = "config.yaml"
FOLDS = "folds.json"
MODEL = "model"

Plain: TypeAlias = dict[str, JsonValue]


class Value(Strict):
    """One metric of one run; null where it is undefined."""

    value: float | None
    low: float | None = None
    high: float | None = None
    interval: str | None = Field(None, description="what the interval covers, in words")


class CohortRef(Strict):
    """The prepared cohort a run read."""

    name: str
    hash: str
    patients: tuple[str, ...]
    details: Plain = Field({}, description="species, tissue, technology, mpp, window_px … as the board prints them")


class FoldRef(Strict):
    """Which patients were tested, and how the number of epochs was chosen without them."""

    index: int = Field(ge=0)
    test_patients: tuple[str, ...] = Field(min_length=1)
    validation: str = Field(description="the rule used: patient, section, block, epochs, test or none")


class PanelRef(Strict):
    """The genes of one fold."""

    hash: str
    rule: str
    scope: str
    n_main: int = Field(ge=1)
    n_auxiliary: int = Field(ge=0)


class Counts(Strict):
    """How much was tested."""

    patients: int = Field(ge=1)
    sections: int = Field(ge=1)
    spots: int = Field(ge=2)
    genes: int = Field(ge=1)


class Epochs(Strict):
    """How long a network trained."""

    planned: int
    chosen: int


class Record(Strict):
    """One fold of one study: identity, provenance and results, with no path and no environment in it.

    `model_label` names a line of the leaderboard: runs that share it must share `model` and `settings` and may differ in
    `seed` and fold only. `settings` holds every other choice outside the protocol that changes a number (input, training).
    """

    format: Literal[1] = FORMAT
    task: str = "spot_expression"
    study: str
    model_label: str = Field(min_length=1)
    kind: Literal["network", "baseline", "reference"]
    model: Plain
    settings: Plain = {}
    protocol: Plain
    protocol_hash: str
    cohort: CohortRef
    split_hash: str
    fold: FoldRef
    panel: PanelRef
    config_hash: str
    seed: int = Field(ge=0)
    n: Counts
    epochs: Epochs | None = None
    parameters: int | None = None
    values: dict[str, Value]
    scoring: Plain = Field({}, description="replicates, repeats and seed of the random parts of the score")
    notes: tuple[str, ...] = ()
    execution: Plain = Field({}, description="processes, threads of each, and accumulation: parts each batch was processed in")
    wall_time_s: float = Field(ge=0)
    device: str
    versions: dict[str, str]
    created: str = Field(description="UTC, ISO 8601")

    @field_validator("model")
    @classmethod
    def _model_kind(cls, value: Plain) -> Plain:
        if not isinstance(value.get("kind"), str):
            raise ValueError("the model needs a `kind`, such as network or training_mean")
        return value

    @model_validator(mode="after")
    def _hash_belongs(self) -> "Record":
        if content_hash(self.protocol) != self.protocol_hash:
            raise ValueError("protocol_hash is not the content hash of protocol: the record was edited")
        return self

    @property
    def settings_hash(self) -> str:
        """Identify model and settings, whatever the seed and fold."""
        return content_hash({"model": self.model, "settings": self.settings})


class Run(NamedTuple):
    """A finished run: its folder and its record."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Runs:
    """What a folder of runs holds; runs without a readable record are named with the reason, never hidden."""

    complete: tuple[Run, ...]
    incomplete: tuple[tuple[Path, str], ...]

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


def write_record(folder: Path, record: Record) -> Path:
    """Write `record.json` into a run folder, whole or not at all; call it last.

    Raises:
        DataError: The folder cannot be written.
    """
    text = json.dumps(record.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(folder / RECORD, lambda path: path.write_text(text, encoding="utf-8"))
    return folder / RECORD


def read_record(folder: Path) -> Record:
    """Read the record of one run.

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
    try:
        return cast(Record, validated(Record, values, str(path)))
    except ConfigError as err:
        raise DataError(f"not a valid record: {err}") from err


def read_records(folder: Path) -> Runs:
    """Read the records of all runs directly below a folder, in the order of their names.

    Args:
        folder: Such as `runs/`, whose subfolders are runs. Folders whose names start with a dot are not runs.

    Returns:
        Finished runs, and unfinished or unreadable ones with the reason.

    Raises:
        DataError: The folder does not exist or holds no run.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}; give the folder that holds the runs, such as runs/")
    complete: list[Run] = []
    incomplete: list[tuple[Path, str]] = []
    for run in sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")):
        try:
            complete.append(Run(run, read_record(run)))
        except DataError as err:
            incomplete.append((run, str(err)))
    if not complete and not incomplete:
        raise DataError(f"{folder} holds no run; make some with stexpr train")
    return Runs(tuple(complete), tuple(incomplete))
