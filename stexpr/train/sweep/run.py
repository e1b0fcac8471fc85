"""Runs what a sweep still lacks, on any engine."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from stexpr.engines.tasks import Engine, Outcome
from stexpr.errors import ConfigError, TrainingError
from stexpr.evaluate.records import RECORD
from stexpr.train.checkpoint import StopFlag, stop_on_signals
from stexpr.train.folder import FAILURE, exclusive
from stexpr.train.sweep.job import Became, task_of, write_failure
from stexpr.train.sweep.plan import STATE, STOP, Plan, PlannedRun, sweeps_in
from stexpr.types import Progress, silent

BUSY_POLL_S: Final = 5.0


@dataclass(frozen=True)
class SweepResult:
    """What one call of `run_sweep` did.

    Attributes:
        n_before: Runs that were done already.
        n_done: Runs done now.
        failed: Runs that failed, now or before, and why.
        n_left: Runs not begun or not finished, because the sweep was stopped.
    """

    n_before: int
    n_done: int
    failed: tuple[tuple[str, str], ...]
    n_left: int

    @property
    def is_complete(self) -> bool:
        """Whether every run has its record."""
        return not self.failed and not self.n_left

    def in_words(self, name: str, source: str, runs: Path) -> str:
        """Say what is done, what is missing and which command goes on.

        Args:
            name: Of the sweep.
            source: As it was called.
            runs: Folder of all runs.
        """
        words = f"{name}: {self.n_done} runs done now, {self.n_before} before"
        if self.failed:
            words += (
                f", {len(self.failed)} failed (traceback in {self.failed[0][1]}; stexpr sweep retry {source} --runs {runs})"
            )
        if self.n_left:
            words += f", {self.n_left} left (the same command goes on)"
        return words if not self.is_complete else f"{words}; stexpr leaderboard {runs} --html"


def missing_runs(plan: Plan, runs: Path, *, only_failed: bool = False) -> list[PlannedRun]:
    """Return the planned runs without a record; those that failed only if they are asked for, and then only those."""
    return [
        run
        for run in plan.runs
        if not (runs / run.key / RECORD).exists() and (runs / run.key / FAILURE).exists() == only_failed
    ]


def run_sweep(
    plan: Plan,
    runs: Path,
    engine: Engine,
    *,
    only_failed: bool = False,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> SweepResult:
    """Make the runs a sweep lacks; a run that fails keeps its traceback and the others go on.

    Args:
        plan: The sweep.
        runs: Folder of all runs.
        engine: Where they run.
        only_failed: Try the runs that failed again, and only those.
        progress: Shows the runs done.
        report: Receives one line per run.

    Returns:
        What was done, and what is missing still; the same call goes on.

    Raises:
        BusyError: The sweep is running already.
        InterruptedTrainingError: SIGINT or SIGTERM arrived; what ran is saved.
        TrainingError: The disk is full.
    """
    folder = plan.state_folder(runs)
    with exclusive(folder, "being swept"), stop_on_signals() as stop:
        (folder / STOP).unlink(missing_ok=True)
        plan.write(runs)
        named = {run.key: run for run in plan.runs}
        todo = missing_runs(plan, runs, only_failed=only_failed)
        n_before = sum((runs / run.key / RECORD).exists() for run in plan.runs)
        became: dict[str, Became] = {}
        outcomes = _outcomes(todo, plan, runs, engine, stop)
        for outcome in progress(outcomes, f"{plan.config.name}: runs", len(todo)):
            key, end, words = _settled(outcome, runs)
            became[key] = end
            if end != "stopped":
                run = named[key]
                at = f"{run.study.label}, fold {run.fold.index}, seed {run.study.seed}"
                report(f"[{n_before + len(became)}/{len(plan.runs)}] {at}: {words} ({runs / key})")
            if end == "disk full":
                (folder / STOP).touch()
        if "disk full" in became.values():
            raise TrainingError(f"the disk of {runs} is full; free space, and the same command goes on")
        stop.raise_if_set()
    failed = tuple((run.key, str(runs / run.key / FAILURE)) for run in missing_runs(plan, runs, only_failed=True))
    n_done = sum(end == "done" for end in became.values())
    n_left = len(missing_runs(plan, runs))
    return SweepResult(n_before, n_done, failed, n_left)


def _outcomes(todo: Sequence[PlannedRun], plan: Plan, runs: Path, engine: Engine, stop: StopFlag) -> Iterator[Outcome]:
    """Yield the outcome of each run; one that another process holds is asked for again when the others are done."""
    stop_file = plan.state_folder(runs) / STOP

    def stopped() -> bool:
        if stop.signal_number is not None:
            stop_file.touch()  # workers on other hosts hear no signal
        return stop_file.exists()

    waiting = [task_of(run, plan, runs) for run in todo]
    while waiting and not stopped():
        busy = []
        for outcome in engine.run(waiting, stopped):
            if isinstance(outcome.value, dict) and outcome.value["became"] == "busy":
                busy.append(outcome.key)
            else:
                yield outcome
        waiting = [task for task in waiting if task.key in busy]
        until = time.monotonic() + BUSY_POLL_S
        while waiting and time.monotonic() < until and not stopped():
            time.sleep(0.1)


def _settled(outcome: Outcome, runs: Path) -> tuple[str, Became, str]:
    """Say what became of a run; one whose process died for good is marked as failed here."""
    if outcome.error is not None:
        write_failure(runs / outcome.key, outcome.error, outcome.trace)
        return outcome.key, "failed", f"FAILED: {outcome.error}"
    became: Became = outcome.value["became"]
    if became == "done":
        return outcome.key, became, outcome.value["words"]
    return outcome.key, became, f"FAILED: {outcome.value.get('error', became)}"


def stop_sweep(runs: Path, names: Iterable[str] = ()) -> list[str]:
    """Ask sweeps to save what runs and to end, wherever their processes are.

    Args:
        runs: Folder of all runs.
        names: Of the sweeps; all of the folder if none is named.

    Returns:
        Names of the sweeps asked.

    Raises:
        ConfigError: No such sweep was started there.
    """
    known = sweeps_in(runs)
    wanted = list(names) or known
    for name in wanted:
        if name not in known:
            raise ConfigError(f"no sweep {name!r} was started in {runs}; started there: {', '.join(known) or 'none'}")
        (runs / STATE / name / STOP).touch()
    return wanted
