"""`stexpr export`: finished runs as one model that others can load."""

from pathlib import Path
from typing import Annotated

import typer

from stexpr.cli import terminal


def export(
    runs: Annotated[list[Path], typer.Argument(help="Run folders, or a folder of runs; several make an ensemble.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the model.")],
    model: Annotated[str | None, typer.Option(help="Label of the model, where the folder holds several.")] = None,
    seed: Annotated[int | None, typer.Option(help="Only the runs of this seed.")] = None,
    cohort: Annotated[Path | None, typer.Option(help="Where the runs' cohort is now.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
) -> None:
    """Write finished runs as one model: weights, genes, intervals, training features and a card."""
    from stexpr.train.release import choose_runs, export_runs

    chosen = choose_runs(runs, model=model, seed=seed)
    with terminal.bar() as progress:
        written = export_runs(chosen, output, cohort=cohort, device=device, progress=progress)
    kind = f"an ensemble of {len(written.networks)} networks" if len(written.networks) > 1 else "one network"
    terminal.say(f"{output}: {kind}, {len(written.genes)} genes, {written.n_features} features")
    if written.intervals is not None:
        terminal.say(f"prediction intervals: {written.intervals.label}")
    for note in written.release.notes:
        terminal.say(f"note: {note}")
