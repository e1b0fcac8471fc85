"""`stexpr wandb`: what was kept offline, and how runs are looked at on Weights & Biases."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from stexpr.cli import terminal

app = typer.Typer(help="Send runs to Weights & Biases, and lay out their workspace.", no_args_is_help=True)


@app.command()
def sync(
    runs: Annotated[Path, typer.Argument(help="A folder of runs, one run, or a leaderboard's folder.")],
) -> None:
    """Send finished runs that are not on the server yet; what is there is not sent again."""
    from stexpr.train.mirror_sync import sync_runs

    states: Counter[str] = Counter()
    with terminal.bar() as progress:
        for sent in progress(sync_runs(runs), "runs"):
            terminal.say(sent.line)
            states[sent.state] += 1
    terminal.say(", ".join(f"{count} {state}" for state, count in states.items()) or f"{runs}: no runs of Weights & Biases")
    if states["failed"]:
        raise typer.Exit(1)
