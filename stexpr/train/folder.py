"""A run's folder: one writer at a time, and `record.json` as the only mark of completion."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from stexpr.config import StudyConfig
from stexpr.config.files import write_whole
from stexpr.errors import TrainingError
from stexpr.evaluate.records import CONFIG as CONFIG
from stexpr.evaluate.records import FOLDS as FOLDS
from stexpr.evaluate.records import MODEL as MODEL
from stexpr.evaluate.records import PREDICTIONS as PREDICTIONS

METRICS = "metrics.jsonl"
MAPS = "maps"


@contextmanager
def exclusive(folder: Path) -> Iterator[Path]:
    """Hold a run's folder, creating it; the kernel lets go even of a killed process's lock.

    Raises:
        TrainingError: Another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            lock.seek(0)
            raise TrainingError(
                f"{folder} is being trained by {lock.read().strip() or 'another process'}; wait for it"
            ) from err
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        yield folder


def write_config(path: Path, config: StudyConfig) -> None:
    """Write the resolved study as YAML."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    write_whole(path, lambda beside: beside.write_text(text, encoding="utf-8"))
