"""Leaderboards of spots and of slides, written, printed and mirrored."""

from pathlib import Path
from typing import Any

from stexpr.cli import terminal


def spot_board(
    runs: Path,
    output: Path,
    *,
    cohort: str | None,
    protocol: str | None,
    html: bool,
    maps: list[str] | None,
    images: Path | None,
    wandb: str | None,
) -> None:
    """Rank models and genes."""
    with terminal.bar() as progress:
        if html:
            from stexpr.evaluate.page.publish import publish

            board, lacking = publish(
                runs, output, cohort=cohort, protocol=protocol, models=maps or (), images=images, progress=progress
            )
        else:
            from stexpr.evaluate.leaderboard import build_leaderboard

            board, lacking = build_leaderboard(runs, cohort=cohort, protocol=protocol, progress=progress), []
            board.write(output)
    terminal.show_board(board)
    for words in lacking:
        terminal.say(words)
    terminal.say(f"written to {output / 'index.html' if html else output}")
    if wandb:
        from stexpr.train.mirror_board import log_board

        terminal.say(log_board(board, wandb, output, runs=runs))


def slide_board(runs: Path, output: Path, *, cohort: str | None, protocol: str | None, html: bool, wandb: str | None) -> None:
    """Rank slide heads."""
    board: Any
    with terminal.bar() as progress:
        if html:
            from stexpr.evaluate.page.slides import publish_slides

            board = publish_slides(runs, output, cohort=cohort, protocol=protocol, progress=progress)
        else:
            from stexpr.evaluate.slides.board import build_slide_board

            board = build_slide_board(runs, cohort=cohort, protocol=protocol, progress=progress)
            board.write(output)
    terminal.show_board(board)
    terminal.say(f"written to {output / 'index.html' if html else output}")
    if wandb:
        from stexpr.train.mirror_board import log_slide_board

        terminal.say(log_slide_board(board, wandb, output))
