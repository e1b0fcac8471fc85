"""`stexpr bags`: trained heads on bags of patches."""

from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from stexpr.cli import terminal

app = typer.Typer(help="Trained slide heads: explain what they predict, deploy them on another cohort.", no_args_is_help=True)


@app.callback()
def bags() -> None:
    """Trained slide heads: explain what they predict, deploy them on another cohort."""


@app.command()
def explain(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run of a slide study.")],
    *,
    bags: Annotated[Path, typer.Option("--bags", "-b", help="Folder of the bags.")],
    slides: Annotated[
        Path | None, typer.Option(help="Folder of slide images, named as the bags; maps are drawn over them.")
    ] = None,
    target: Annotated[list[str] | None, typer.Option(help="Target, or target=class; several times; all if not given.")] = None,
    slide: Annotated[
        list[str] | None, typer.Option(help="Slide; several times; those of the run's test patients if not given.")
    ] = None,
    genes: Annotated[
        Path | None, typer.Option(help="Held-out r of the encoder's genes: per_gene.parquet of its run. Others are greyed.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of maps and tables.")] = Path("explained"),
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
) -> None:
    """Show which patches and genes carry the predictions of a slide head: maps, QuPath squares, sheets of patches, tables."""
    from stexpr.train.slides.explain import explain_run

    with terminal.bar() as progress:
        done = explain_run(
            run,
            bags,
            output,
            images=slides,
            targets=target or (),
            slides=slide or (),
            genes=genes,
            device=device,
            progress=progress,
            report=terminal.say,
        )
    n_slides, n_targets = done.slides["slide"].nunique(), done.slides["target"].nunique()
    terminal.say(f"{n_slides:,} slides, {n_targets} outputs explained; written to {output}")


@app.command()
def deploy(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs of one slide study, such as its folds.")],
    *,
    bags: Annotated[Path, typer.Option("--bags", "-b", help="Folder of the other cohort's bags, by the same encoder.")],
    slides: Annotated[Path, typer.Option(help="Its slide table: PATIENT, FILENAME.")],
    clinical: Annotated[
        list[Path], typer.Option(help="Its clinical table; several times. Targets without a column are predicted only.")
    ],
    patient: Annotated[str | None, typer.Option(help="Column that names the patient, where it is not PATIENT.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables.")] = Path("deployed"),
) -> None:
    """Predict the patients of another cohort, weights, calibration and thresholds frozen, and score them there."""
    from stexpr.config.slides import SlideTables
    from stexpr.train.slides.deploy import deploy as predict

    found = predict(runs, bags, SlideTables(clinical=tuple(clinical), slides=slides, patient=patient))
    rows = [
        (target, measure, f"{value:.3f}", "" if isnan(low) else f"{low:.3f} to {high:.3f}", words)
        for target, measure, value, low, high, words, _ in found.scores.itertuples(index=False, name=None)
    ]
    if rows:
        terminal.show_table(("target", "measure", "value", "95 %", "about it"), rows)
    for note in found.notes:
        terminal.say(note)
    n = found.results.patients["patient"].nunique()
    terminal.say(f"{n:,} patients predicted by {len(runs)} heads; written to {', '.join(map(str, found.write(output)))}")
