"""How far each run of a sweep has come, read from the run folders alone: any process of any host may ask."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from stexpr.errors import DataError
from stexpr.evaluate.records import RECORD, read_any_record
from stexpr.train.folder import CHECKPOINT, FAILURE, LOCK, METRICS, is_held
from stexpr.train.sweep.plan import STATE, planned_entries

State: TypeAlias = Literal["done", "running", "failed", "interrupted", "waiting"]
STATES: Final[tuple[State, ...]] = ("running", "failed", "interrupted", "waiting", "done")


@dataclass(frozen=True)
class RunState:
    """One run of a sweep.

    Attributes:
        key: Its config hash.
        label: The model, as on a leaderboard.
        kind: network, baseline or reference.
        fold: Of the study.
        seed: Of the study.
        state: What its folder says.
        value: Main value of the record (mean r of a study of spots), of a run that is done and has one.
        seconds: Time the training took, of a run that is done.
        words: The epoch of a running one, the error of a failed one.
    """

    key: str
    label: str
    kind: str
    fold: int
    seed: int
    state: State
    value: float | None = None
    seconds: float | None = None
    words: str = ""

    @property
    def name(self) -> str:
        """Name the run for a person."""
        return f"{self.label}, fold {self.fold}, seed {self.seed}"


@dataclass(frozen=True)
class SweepStatus:
    """A sweep at one moment.

    Attributes:
        name: Of the sweep.
        runs: All of them, in the order of the plan.
        is_running: Whether a process works on it now.
    """

    name: str
    runs: tuple[RunState, ...]
    is_running: bool

    def count(self, state: State) -> int:
        """Return how many runs are in a state."""
        return sum(run.state == state for run in self.runs)

    @property
    def best(self) -> tuple[str, float] | None:
        """Model with the highest main value so far, over the folds and seeds it has finished, and that value."""
        by_model: dict[str, list[float]] = {}
        for run in self.runs:
            if run.state == "done" and run.kind == "network" and run.value is not None:
                by_model.setdefault(run.label, []).append(run.value)
        means = {label: sum(values) / len(values) for label, values in by_model.items()}
        return max(means.items(), key=lambda item: item[1]) if means else None

    @property
    def seconds_left(self) -> float | None:
        """Time left if the missing runs take as long as the finished ones of their model, else of all; None without any.

        Counts the runs that are going on as slots, so it is a guess while the last runs end.
        """
        spent: dict[str, list[float]] = {}
        for run in self.runs:
            if run.kind == "network" and run.seconds is not None:
                spent.setdefault(run.label, []).append(run.seconds)
        if not spent:
            return None
        everything = [seconds for values in spent.values() for seconds in values]
        left = sum(
            _mean(spent.get(run.label, everything))
            for run in self.runs
            if run.kind == "network" and run.state not in ("done", "failed")
        )
        return left / max(1, self.count("running"))

    def counts(self) -> str:
        """Say how many runs are in which state."""
        found = Counter(run.state for run in self.runs)
        return ", ".join(f"{found[state]} {state}" for state in ("done", *STATES[:-1]) if found[state] or state == "done")


def sweep_status(runs: Path, name: str) -> SweepStatus:
    """Read how far a sweep has come.

    Args:
        runs: Folder of all runs.
        name: Of the sweep.

    Raises:
        ConfigError: No such sweep was started there.
    """
    states = tuple(run_state(runs / entry["key"], entry) for entry in planned_entries(runs, name))
    return SweepStatus(name, states, is_held(runs / STATE / name))


def run_state(folder: Path, entry: dict[str, Any]) -> RunState:
    """Read how far one run has come.

    Args:
        folder: Of the run; it need not exist.
        entry: What the plan says of it.
    """
    if (folder / RECORD).exists():
        try:
            record = read_any_record(folder)
        except DataError as err:
            return RunState(**entry, state="failed", words=str(err))
        return RunState(**entry, state="done", value=record.main_value[1], seconds=record.wall_time_s, words=record.in_words)
    if (folder / LOCK).exists() and is_held(folder):
        return RunState(**entry, state="running", words=_epoch(folder))
    if (folder / FAILURE).exists():
        return RunState(**entry, state="failed", words=_error(folder))
    if (folder / CHECKPOINT).exists():
        return RunState(**entry, state="interrupted", words=_epoch(folder))
    return RunState(**entry, state="waiting")


def _epoch(folder: Path) -> str:
    """Say what the last whole line of the metrics does."""
    try:
        lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
        values = json.loads(lines[-1])
        began = (folder / METRICS).stat().st_mtime
    except (OSError, ValueError, IndexError):
        return ""
    ago = max(0.0, datetime.now(UTC).timestamp() - began)
    r = f", validation r {values['val/pearson']:.3f}" if "val/pearson" in values else ""
    return f"{values.get('phase', '')} epoch {values.get('epoch')}{r}, {_ago(ago)} ago"


def _error(folder: Path) -> str:
    try:
        return str(json.loads((folder / FAILURE).read_text(encoding="utf-8"))["error"])
    except (OSError, ValueError, KeyError):
        return f"see {folder / FAILURE}"


def _ago(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
