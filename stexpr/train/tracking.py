"""Where a run's numbers go while it trains: `metrics.jsonl` always, and what mirrors it (`stexpr.train.mirror`).

The run directory is the source of truth.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd


@runtime_checkable
class Tracker(Protocol):
    """Receives what a run measures."""

    def log(self, values: Mapping[str, float | int | str]) -> None:
        """Take one epoch's values."""
        ...

    def finish(self, summary: Mapping[str, Any], per_gene: pd.DataFrame, images: Sequence[Path], model: Path | None) -> None:
        """Take the final values, the per-gene table, pictures and the exported model, and close."""
        ...


class MetricsFile:
    """One JSON object a line, flushed at once."""

    def __init__(self, path: Path, keep_lines: int) -> None:
        """Open for appending, after cutting what a killed run wrote past its last checkpoint.

        Args:
            path: The file.
            keep_lines: Lines that belong to the state the run goes on from.
        """
        kept = path.read_text(encoding="utf-8").splitlines()[:keep_lines] if path.exists() else []
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.path = path
        self.lines = len(kept)

    def log(self, values: Mapping[str, float | int | str]) -> None:
        """Append one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(values)) + "\n")
        self.lines += 1

    def finish(self, summary: Mapping[str, Any], per_gene: pd.DataFrame, images: Sequence[Path], model: Path | None) -> None:
        """Write nothing: the run directory holds the final values."""
