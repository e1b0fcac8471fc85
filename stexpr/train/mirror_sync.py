"""Sending offline runs to Weights & Biases, with wandb's own `sync` in a process that can be ended."""

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final, NamedTuple

from stexpr.errors import ConfigError, TrainingError
from stexpr.evaluate.records import CONFIG, RECORD
from stexpr.train.wandb_client import SYNCED, harmless

__all__ = ["OfflineRun", "Sent", "require_server", "sync_runs"]

PROBE_S: Final = 60
RUN_S: Final = 600
PROBE: Final = "import sys, wandb; sys.exit(0 if wandb.login(prompt=False) else 3)"


class OfflineRun(NamedTuple):
    """One run as wandb keeps it on disk: the newest of its attempts, which holds all of it."""

    log: Path

    @property
    def folder(self) -> Path:
        """The folder it mirrors, or that of a leaderboard."""
        return self.log.parent.parent.parent

    @property
    def synced(self) -> bool:
        """Whether it is whole on the server."""
        return self.log.with_name(self.log.name + SYNCED).exists()

    @property
    def unfinished(self) -> bool:
        """Whether its training is going on, or was interrupted."""
        return (self.folder / CONFIG).exists() and not (self.folder / RECORD).exists()


class Sent(NamedTuple):
    """What came of one run: `sent`, `synced before`, `unfinished` or `failed`, and the line to print."""

    state: str
    line: str


def find_runs(runs: Path) -> list[OfflineRun]:
    """Find what wandb keeps below a folder, by run the newest attempt.

    Args:
        runs: A folder of runs, one run, or a leaderboard's folder.

    Raises:
        ConfigError: There is no such folder.
    """
    if not runs.is_dir():
        raise ConfigError(f"there is no folder {runs}; name a folder of runs, such as `stexpr wandb sync runs`")
    newest: dict[tuple[Path, str], Path] = {}
    for log in sorted(runs.rglob("wandb/*run-*/run-*.wandb"), key=_age):
        newest[log.parent.parent, log.name] = log
    return [OfflineRun(log) for log in sorted(newest.values())]


def _age(log: Path) -> tuple[str, bool]:
    """Order attempts: by the time in the folder's name, and offline last, for it follows an online attempt that failed."""
    name = log.parent.name
    return name.removeprefix("offline-"), name.startswith("offline-")


def require_server() -> None:
    """Make sure that someone is logged in and the server answers.

    Raises:
        ConfigError: Nobody is logged in.
        TrainingError: The server refuses the key or does not answer.
    """
    try:
        code, said = _wandb(["-c", PROBE], PROBE_S)
    except subprocess.TimeoutExpired:
        raise TrainingError(f"Weights & Biases does not answer within {PROBE_S} s; try again later") from None
    if code == 3:
        raise ConfigError("nobody is logged in to Weights & Biases; run `wandb login`, or set WANDB_API_KEY")
    if code:
        raise TrainingError(f"Weights & Biases refuses or does not answer: {_last_line(said)}")


def sync_runs(runs: Path) -> Iterator[Sent]:
    """Send every finished run below a folder that is not on the server yet.

    A run trained online counts as sent once wandb said so; what an outage or a kill cut short is sent whole. Runs whose
    training has not finished are left: finished, they hold all of it.

    Args:
        runs: A folder of runs, one run, or a leaderboard's folder.

    Yields:
        What came of each run.

    Raises:
        ConfigError: There is no such folder, or nobody is logged in.
        TrainingError: The server refuses the key, or does not answer, at the start or between runs.
    """
    found = find_runs(runs)
    if any(not run.synced and not run.unfinished for run in found):
        require_server()
    for run in found:
        name = f"{run.folder.name} ({run.log.parent.name})"
        if run.synced:
            yield Sent("synced before", f"{name}: synced before")
        elif run.unfinished:
            yield Sent("unfinished", f"{name}: not finished; `stexpr train` on the same study finishes it")
        else:
            lost = _send(run)
            yield Sent("failed" if lost else "sent", f"{name}: {f'not sent: {lost}' if lost else 'sent'}")
            if lost:
                require_server()


def _send(run: OfflineRun) -> str | None:
    """Send one run; return why it did not arrive."""
    try:
        _, said = _wandb(["-m", "wandb", "sync", "--include-online", str(run.log.absolute())], RUN_S)
    except subprocess.TimeoutExpired:
        return f"no end within {RUN_S} s"
    trouble = [line for line in said.splitlines() if "ERROR" in line or "Fatal" in line]
    if trouble:  # wandb marks a run also where the server refused its history half-way
        run.log.with_name(run.log.name + SYNCED).unlink(missing_ok=True)
    return None if run.synced else harmless(trouble[0] if trouble else _last_line(said))


def _wandb(arguments: Sequence[str], seconds: float) -> tuple[int, str]:
    """Run Python with wandb; return its exit code and what it said on stderr."""
    environment = {name: value for name, value in os.environ.items() if name not in ("WANDB_MODE", "WANDB_SILENT")}
    with TemporaryFile() as said:  # a pipe would stay open for as long as wandb's own process lingers
        done = subprocess.run(
            [sys.executable, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            timeout=seconds,
            env=environment,
            check=False,
        )
        said.seek(0)
        return done.returncode, said.read().decode(errors="replace")


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return harmless(lines[-1]) if lines else "it said nothing"
