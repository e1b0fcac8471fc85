"""`stexpr wandb`: what was kept offline, and how runs are looked at on Weights & Biases."""

import json
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from stexpr.cli import terminal
from stexpr.errors import ConfigError, TrainingError

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


@app.command()
def report(
    runs: Annotated[Path | None, typer.Argument(help="A folder of runs; shows their studies alone.")] = None,
    project: Annotated[str | None, typer.Option(help="The project, where it is not the one the runs name.")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the definition, and create nothing.")] = False,
) -> None:
    """Create a report of learning curves, r by backbone and r by gene, or print its definition.

    It is created where the package wandb-workspaces is installed and someone is logged in.
    """
    from stexpr.train import mirror_report

    if runs is not None:
        definition = mirror_report.report_of_runs(runs, project)
    elif project is not None:
        definition = mirror_report.report_definition(project)
    else:
        raise ConfigError("name a folder of runs, or a project with --project")
    if not only_print and mirror_report.has_workspaces():
        try:
            terminal.say(mirror_report.create_report(definition))
            return
        except (ConfigError, TrainingError) as err:
            terminal.fail(f"not created: {err}; its definition follows")
    terminal.say(json.dumps(definition, indent=2))
