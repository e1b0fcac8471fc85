"""What the command line prints: bars, tables and one-line errors."""

import contextlib
import sys
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from stexpr.errors import DomainWarning

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find them
    import stexpr.data.store

T = TypeVar("T")
MOST_ROWS = 30
MOST_PLANNED = 60
STATES_SHOWN = ("running", "failed", "interrupted", "waiting", "done")
errors = Console(stderr=True, highlight=False)


class Bars:
    """Draws a bar for each wrapped iterable on a terminal, and nothing elsewhere."""

    def __init__(self, display: Progress) -> None:
        self._display = display

    def __call__(self, items: Iterable[T], label: str, total: int | None = None) -> Iterable[T]:
        """Yield the items, moving the bar."""
        task = self._display.add_task(label, total=total)
        try:
            for item in items:
                yield item
                self._display.advance(task)
        finally:  # also when the loop is left early
            self._display.remove_task(task)


@contextmanager
def bar() -> Iterator[Bars]:
    """Give a progress display on stderr, quiet when that is not a terminal."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # rich would send what is printed meanwhile to the bar's console, also where stdout goes into a file
    together = sys.stdout.isatty()
    with Progress(
        *columns, console=errors, transient=True, disable=not errors.is_terminal, redirect_stdout=together
    ) as display:
        yield Bars(display)


def say(line: str) -> None:
    """Print one line of a result."""
    print(line, flush=True)


def fail(message: str) -> None:
    """Print one line of an error on stderr, unwrapped, so that it can be read by people and programs."""
    print(f"stexpr: {' '.join(message.split())}", file=sys.stderr, flush=True)


@contextmanager
def warnings_as_lines() -> Iterator[None]:
    """Print each warning of a model used outside of its domain as one line on stderr, inside the block."""

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, DomainWarning):
            fail(f"warning: {message}")
        else:
            usual(message, category, *where, **more)

    with warnings.catch_warnings():
        usual, warnings.showwarning = warnings.showwarning, show
        warnings.simplefilter("always", DomainWarning)
        yield


def show_table(headings: Sequence[str], rows: Iterable[Sequence[Any]], title: str | None = None) -> None:
    """Print a table to stdout."""
    table = Table(*headings, title=title, title_justify="left")
    for row in rows:
        table.add_row(*("–" if cell is None else str(cell) for cell in row))
    wide = Console() if sys.stdout.isatty() else Console(width=200)
    wide.print(table)


def show_board(board: Any) -> None:
    """Print a leaderboard as its Markdown, which reads well in a terminal too."""
    say(board.markdown())


def show_cohort(cohort: "stexpr.data.store.PreparedCohort") -> None:
    """Print what a prepared cohort holds, and what was left out and why."""
    rows = []
    for section in cohort.manifest.sections:
        left_out = ", ".join(f"{count} {reason}" for reason, count in section.left_out.items() if count) or "none"
        rows.append((section.section, section.patient, section.n_spots, left_out))
    show_table(("section", "patient", "spots", "left out"), rows)
    for name, reason in cohort.manifest.sections_left_out.items():
        say(f"section {name} left out: {reason}")
    for note in dict.fromkeys(note for section in cohort.manifest.sections for note in section.notes):
        named = [section.section for section in cohort.manifest.sections if note in section.notes]
        say(f"note on {', '.join(named)}: {note}")
    for reason, count in cohort.manifest.genes_left_out.items():
        say(f"{count} genes left out: {reason}")
    say(
        f"{cohort.path}: {len(cohort.sections)} sections, {len(cohort.patients)} patients, {len(cohort.genes)} genes, "
        f"{cohort.window_px} px patches at {cohort.mpp:g} um/px, hash {cohort.hash}"
    )


def show_audit(found: Any) -> None:
    """Print an audit, the gravest findings first; of many runs, a check that all passed is one row."""
    rows = found.rows()
    if len(rows) > MOST_ROWS:
        passed: dict[str, list[tuple[str, str, str, str]]] = {}
        for row in rows:
            if row[2] == "passed":
                passed.setdefault(row[1], []).append(row)
        rows = [row for row in rows if row[2] != "passed"]
        for check, alike in passed.items():
            many = f"{len(alike)} runs", check, "passed", f"such as {alike[0][0]}: {alike[0][3]}"
            rows.append(alike[0] if len(alike) == 1 else many)
    show_table(("what", "check", "", "found"), rows)
    leaks = sum(finding.severity == "leak" for finding in found.findings)
    flags = sum(finding.severity == "flag" for finding in found.findings)
    say(f"{found.path}: {leaks} leaks, {flags} to look at, {len(found.findings)} checks")


def show_findings(findings: Iterable[tuple[str, str, bool]]) -> None:
    """Print what `doctor` found: what was looked at, what was found, whether that is fine."""
    show_table(("", "what", "found"), (("ok" if fine else "PROBLEM", what, found) for what, found, fine in findings))


def show_plan(plan: Any, missing: Collection[str], seconds: Mapping[str, float], slots: int) -> None:
    """Print the runs of a sweep, which of them are missing, and how long those take."""
    rows = []
    for run in plan.runs:
        spent = _duration(seconds[run.key]) if run.key in seconds else None
        state = "missing" if run.key in missing else "there"
        rows.append((run.key, run.study.label, run.fold.index, run.study.seed, state, spent))
    shown = rows if len(rows) <= MOST_PLANNED else [*rows[: MOST_PLANNED // 2], ("…",) * 6, *rows[-MOST_PLANNED // 2 :]]
    show_table(("run", "model", "fold", "seed", "", "at most"), shown)
    for note in plan.notes:
        say(note)
    total = max([sum(seconds.values()) / slots, *seconds.values()], default=0.0)
    say(
        f"{plan.summary()}; {len(missing):,} are missing. Training takes at most {_duration(total)} on this machine, "
        f"{slots} at a time, by a probe of a few steps; scoring comes on top."
    )


def sweep_view(status: Any) -> Group:
    """Return a line about a sweep, and its runs by state."""
    left = status.seconds_left
    best = "" if status.best is None else f"; best so far {status.best[0]}, mean r {status.best[1]:.3f}"
    time_left = "" if left is None or not status.count("running") else f"; about {_duration(left)} left"
    line = f"{status.name} ({'running' if status.is_running else 'not running'}): {status.counts()}{best}{time_left}"
    table = Table("state", "run", "folder", "")
    for state in STATES_SHOWN:
        own = [run for run in status.runs if run.state == state]
        for run in own[:MOST_ROWS]:
            table.add_row(state, run.name, run.key, Text(run.words))
        if len(own) > MOST_ROWS:
            table.add_row(state, f"… and {len(own) - MOST_ROWS} more", "", "")
    return Group(Text(line), table)


def show_sweeps(statuses: Iterable[Any]) -> None:
    """Print sweeps to stdout."""
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for status in statuses:
        console.print(sweep_view(status))


def watch_sweeps(look: Callable[[], Sequence[Any]], *, every_s: float = 2.0) -> None:
    """Show sweeps anew every few seconds until none of them runs, or Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt), Live(console=Console(), auto_refresh=False) as live:
        while True:
            statuses = look()
            live.update(Group(*(sweep_view(status) for status in statuses)), refresh=True)
            if not any(status.is_running for status in statuses):
                break
            time.sleep(every_s)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
