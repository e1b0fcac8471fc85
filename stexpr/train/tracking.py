"""Where a run's numbers go while it trains: `metrics.jsonl` always, Weights & Biases beside it if asked for.

The run directory is the source of truth. A mirror that cannot be reached is named in a warning and left; training goes on.
"""

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from stexpr.config import StudyConfig
from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.evaluate.page.figures import as_plotly, board_figures
from stexpr.evaluate.page.view import board_view


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


class WandbMirror:
    """Mirrors a run to Weights & Biases: online when logged in, offline without an account.

    `WANDB_MODE`, where set, decides instead. A failure to reach the server ends the mirror, not the training.
    """

    def __init__(self, config: StudyConfig, folder: Path, *, run_id: str, name: str, fold: int, cohort_hash: str) -> None:
        import wandb

        self._run: Any = None
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
        try:
            self._run = wandb.init(
                project=config.runtime.wandb_project,
                dir=str(folder),
                mode=mode,
                id=run_id,
                resume="allow" if mode == "online" else None,
                name=name,
                group=config.name,
                job_type="train" if config.model.kind == "network" else "baseline",
                tags=[config.protocol.name, config.cohort.name, config.model.label],
                config={**config.model_dump(mode="json"), "fold": fold, "cohort_hash": cohort_hash},
                settings=wandb.Settings(silent=True, console="off"),
            )
            self._run.define_metric("epoch")
            for pattern in ("train/*", "val/*"):
                self._run.define_metric(pattern, step_metric="epoch")
            self._run.define_metric("val/pearson", step_metric="epoch", summary="max")
        except Exception as err:  # whatever wandb raises, the training is worth more than its mirror
            self._give_up(err)

    def log(self, values: Mapping[str, float | int | str]) -> None:
        """Mirror one epoch."""
        if self._run is not None:
            try:
                self._run.log(dict(values))
            except Exception as err:
                self._give_up(err)

    def finish(self, summary: Mapping[str, Any], per_gene: pd.DataFrame, images: Sequence[Path], model: Path | None) -> None:
        """Log the per-gene table, the pictures and, when online, the model; then close."""
        if self._run is None:
            return
        import wandb

        try:
            self._run.log({"per_gene": wandb.Table(dataframe=per_gene)})
            self._run.log({f"maps/{image.stem}": wandb.Image(str(image)) for image in images})
            self._run.summary.update(dict(summary))
            if model is not None and not self._run.offline:
                artifact = wandb.Artifact(f"model-{self._run.id}", type="model", metadata=dict(summary))
                artifact.add_dir(str(model))
                self._run.log_artifact(artifact)
            self._run.finish()
        except Exception as err:
            self._give_up(err)

    def _give_up(self, err: Exception) -> None:
        warnings.warn(f"Weights & Biases left this run ({type(err).__name__}); its numbers are in metrics.jsonl", stacklevel=3)
        self._run = None


def log_board(board: Leaderboard, project: str, folder: Path) -> str:
    """Log a board to Weights & Biases: its tables and the figures of its page, in a run of the job type `leaderboard`.

    Args:
        board: The board.
        project: Where it goes.
        folder: Where wandb keeps its files, and the whole run without a connection.

    Returns:
        A sentence that says where it is.
    """
    import wandb

    mode: Any = os.environ.get("WANDB_MODE") or ("online" if _logged_in() else "offline")
    settings = wandb.Settings(silent=True, console="off")
    run = wandb.init(project=project, dir=str(folder), mode=mode, job_type="leaderboard", name=board.title, settings=settings)
    tables = {"leaderboard": board.models, "per_gene": board.genes, "comparisons": board.comparisons}
    run.log({name: wandb.Table(dataframe=table.astype(object).where(table.notna(), None)) for name, table in tables.items()})
    run.log({f"figures/{name}": wandb.Plotly(as_plotly(figure)) for name, figure in board_figures(board_view(board)).items()})
    leading = board.models.iloc[0]
    run.summary.update({"leading": str(leading["model"]), "r": None if pd.isna(leading["r"]) else float(leading["r"])})
    place = run.url if not run.offline else f"{run.dir} (offline: wandb sync {Path(run.dir).parent})"
    run.finish()
    return f"logged to {place}"


def _logged_in() -> bool:
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # a refused key must not stop a training
        return False
