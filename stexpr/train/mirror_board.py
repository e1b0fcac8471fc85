"""A leaderboard on Weights & Biases: its tables and the figures of its page, in a run of their own."""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.evaluate.page import slide_figures
from stexpr.evaluate.page.figures import as_plotly, board_figures
from stexpr.evaluate.page.view import board_view
from stexpr.evaluate.records import read_records
from stexpr.evaluate.slides.board import SlideBoard
from stexpr.train.wandb_client import RESULTS_S, as_table, client, close_run, in_words, open_run, within

__all__ = ["log_board", "log_slide_board"]


def log_board(board: Leaderboard, project: str, folder: Path, *, runs: Path | None = None) -> str:
    """Log a board to Weights & Biases: its tables and the figures of its page, in a run of the job type `leaderboard`.

    Args:
        board: The board.
        project: Where it goes.
        folder: Where wandb keeps its files, and the whole run without a connection.
        runs: Where its runs are: with the networks of one study, it joins their group.

    Returns:
        A sentence that says where it is, and what to do where no server took it.
    """
    leading = board.models.iloc[0]
    return _logged(
        {"project": project, "name": board.title, "group": _study(runs) or board.title},
        {"leaderboard": board.models, "per_gene": board.genes, "comparisons": board.comparisons},
        {name: as_plotly(figure) for name, figure in board_figures(board_view(board)).items()},
        {"leading": str(leading["model"]), "r": None if pd.isna(leading["r"]) else float(leading["r"])},
        folder,
    )


def log_slide_board(board: SlideBoard, project: str, folder: Path) -> str:
    """Log a board of slide heads: its tables and their ranking, in a run of the job type `leaderboard`.

    Args:
        board: The board.
        project: Where it goes.
        folder: Where wandb keeps its files, and the whole run without a connection.

    Returns:
        As `log_board`.
    """
    tables = {"leaderboard": board.models, "targets": board.targets, "comparisons": board.comparisons}
    given = {"project": project, "name": board.title, "group": board.title}
    images = {"scores": as_plotly(slide_figures.ranking(board))}
    return _logged(given, tables, images, {"leading": board.leader}, folder)


def _logged(
    given: dict[str, Any], tables: dict[str, pd.DataFrame], images: dict[str, Any], summary: dict[str, Any], folder: Path
) -> str:
    wandb = client()
    given = {**given, "job_type": "leaderboard"}

    def send(run: Any) -> None:
        run.log({name: as_table(table) for name, table in tables.items() if len(table)})
        run.log({f"figures/{name}": wandb.Plotly(figure) for name, figure in images.items()})
        run.summary.update(summary)

    try:
        run, trouble = open_run(folder, given)
        place, offline = run.url, run.offline
        try:
            within(RESULTS_S, partial(send, run))
            lost = close_run(run)
        except Exception as err:
            lost = in_words(err)
        if lost and not offline:
            run, trouble, offline = open_run(folder, given, mode="offline")[0], lost, True
            send(run)
            lost = close_run(run)
    except Exception as err:
        return f"not logged to Weights & Biases: {in_words(err)}"
    if lost:
        return f"not logged to Weights & Biases: {lost}"
    if not offline:
        return f"logged to {place}"
    reason = f"Weights & Biases did not take it: {trouble}" if trouble else "nobody is logged in, or WANDB_MODE says so"
    return f"logged to {Path(run.dir).parent}, offline ({reason}); send it with `stexpr wandb sync {folder}`"


def _study(runs: Path | None) -> str | None:
    found = read_records(runs).complete if runs is not None else ()
    studies = {run.record.study for run in found if run.record.kind == "network"}
    return studies.pop() if len(studies) == 1 else None
