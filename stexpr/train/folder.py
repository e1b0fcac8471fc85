"""A run's folder: one writer at a time, and `record.json` as the only mark of completion.

The lock of a folder is the kernel's, which lets go even of a killed process's, and beside it a heartbeat: where processes of
several hosts share a file system that does not carry such locks, the age of the heartbeat tells whether a holder lives.
"""

import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

import yaml

from stexpr.config import Strict
from stexpr.config.files import write_whole
from stexpr.errors import TrainingError
from stexpr.evaluate.records import CONFIG as CONFIG
from stexpr.evaluate.records import FOLDS as FOLDS
from stexpr.evaluate.records import MODEL as MODEL
from stexpr.evaluate.records import PREDICTIONS as PREDICTIONS

METRICS = "metrics.jsonl"
MAPS = "maps"
CHECKPOINT = "checkpoint.pt"
FAILURE = "failure.json"
"""Why a run of a sweep failed; gone once it is tried again."""
LOCK = "lock"
HEARTBEAT_S: Final = 10.0
LOOKS: Final = 5
LOOK_S: Final = 0.1
STALE_S: Final = 60.0
"""A holder on another host that has not been heard of for so long is dead."""


class BusyError(TrainingError):
    """Another process holds the folder; it is free again when that one is done."""


@contextmanager
def exclusive(folder: Path, purpose: str = "being trained") -> Iterator[Path]:
    """Hold a folder, creating it; the kernel lets go even of a killed process's lock.

    Args:
        folder: Of a run, or of a sweep.
        purpose: What the message says is done there by its holder.

    Raises:
        BusyError: Another process holds it, or one of another host did less than a minute ago.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    with path.open("a+", encoding="utf-8") as lock:
        if not _locked(lock):
            raise BusyError(f"{folder} is {purpose} by {_named(_holder(path))}; wait for it")
        holder = _holder(path)
        if holder and holder["host"] != socket.gethostname() and (age := silent_for_s(path)) < STALE_S:
            raise BusyError(
                f"{folder} is {purpose} by {_named(holder)}, last heard of {age:.0f} s ago; wait for it, or {STALE_S:.0f} s "
                "if it was killed"
            )
        lock.truncate(0)
        lock.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}) + "\n")
        lock.flush()
        released = threading.Event()
        beat = threading.Thread(target=_beat, args=(path, released), daemon=True)
        beat.start()
        try:
            yield folder
        finally:
            released.set()
            beat.join()
            lock.truncate(0)


def _locked(lock: IO[str]) -> bool:
    """Take the kernel's lock, unless it is held for longer than `is_held` takes to look."""
    for _ in range(LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_S)
        else:
            return True
    return False


def is_held(folder: Path) -> bool:
    """Whether a living process holds the folder."""
    path = folder / LOCK
    holder = _holder(path)
    if holder is None:
        return False
    if holder["host"] != socket.gethostname():
        return silent_for_s(path) < STALE_S
    with path.open("r", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def silent_for_s(path: Path) -> float:
    """Return the age of a file by the clock of its own file system, which other hosts share."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".now-") as now:
        return max(0.0, os.stat(now.name).st_mtime - path.stat().st_mtime)


def _beat(path: Path, released: threading.Event) -> None:
    while not released.wait(HEARTBEAT_S):
        try:
            os.utime(path)
        except OSError:  # a full or unmounted disk is the training's to report
            return


def _holder(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"process", "host"} <= set(found) else None


def _named(holder: dict[str, Any] | None) -> str:
    return f"process {holder['process']} on {holder['host']}" if holder else "another process"


def write_config(path: Path, config: Strict) -> None:
    """Write the resolved study as YAML."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))
