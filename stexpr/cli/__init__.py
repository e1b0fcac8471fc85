"""The command line: each verb a thin layer over one public function.

Nothing heavy is imported before a verb runs, so `stexpr --help` answers at once.
"""

import errno
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from stexpr.cli import bags, config, data, export, predict, slides, sweep, terminal, tracker
from stexpr.config.allocation import keep_freed_memory
from stexpr.errors import ConfigError, StexprError

__all__ = ["app", "main"]

app = typer.Typer(
    name="stexpr",
    help="Predict spatial gene expression from H&E, compare models honestly, reuse the encoder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(bags.app, name="bags")
app.add_typer(config.app, name="config")
app.add_typer(slides.app, name="slides")
app.add_typer(sweep.app, name="sweep")
app.add_typer(tracker.app, name="wandb")
app.command()(export.export)
app.command()(predict.predict)

Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, such as training.lr=1e-3")]
Runs = Annotated[Path, typer.Option("--runs", help="Folder of all runs.")]


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to work in.")] = Path("stexpr-demo"),
    seed: Annotated[int, typer.Option(help="Makes another cohort and other weights.")] = 0,
    quick: Annotated[bool, typer.Option("--quick", help="Smaller, only to see that everything works.")] = False,
    slides: Annotated[bool, typer.Option("--slides", help="Go on with slide heads: mutation, Ki67 and survival.")] = False,
) -> None:
    """Make a synthetic cohort, train two backbones with and without the auxiliary head, and rank them."""
    from stexpr.train.demo import run_demo

    with terminal.bar() as progress:
        board = run_demo(output, seed=seed, quick=quick, progress=progress, report=terminal.say)
    terminal.show_board(board)
    if slides:
        from stexpr.train.slides.demo import run_slide_demo

        with terminal.bar() as progress:
            boards = run_slide_demo(output, seed=seed, quick=quick, progress=progress, report=terminal.say)
        for one in boards.values():
            terminal.show_board(one)


@app.command()
def prepare(
    card: Annotated[
        str | None, typer.Argument(help="A data card: a name from `stexpr data list`, or your own .md file.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Folder with the raw files of the card.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the prepared cohort.")] = None,
    adopt: Annotated[
        Path | None, typer.Option(help="Instead of a card: a HEST-1k download, made a cohort without a change to its files.")
    ] = None,
    patients: Annotated[
        Path | None, typer.Option(help="With --adopt: CSV of section and patient, where the metadata do not say.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Cut patches and counts of raw sections into a prepared cohort; only what changed is done again."""
    if adopt is not None:
        settings = [*([card] if card else []), *(overrides or [])]  # without a card the first setting stands in its place
        terminal.show_cohort(data.adopted(adopt, patients, source, output, settings))
        return
    from stexpr.config import prepare_config
    from stexpr.data.cards import load_card
    from stexpr.data.prepare import prepare as prepare_cohort

    if card is None or source is None or output is None or patients is not None:
        raise ConfigError("prepare needs CARD, --from FOLDER and --output FOLDER, or --adopt FOLDER (maybe with --patients)")
    loaded = load_card(card)
    config_of_card = prepare_config(loaded.prepare, overrides or [], card)
    with terminal.bar() as progress:
        cohort = prepare_cohort(loaded, source, output, config_of_card, progress=progress)
    terminal.show_cohort(cohort)


@app.command()
def convert(
    source: Annotated[
        Path, typer.Argument(help="An .h5ad, a SpatialData .zarr, a HEST-1k folder, or that of Space Ranger or Xenium.")
    ],
    target: Annotated[Path, typer.Argument(help="An .h5ad (its image is written beside it), a .zarr, or a HEST-1k folder.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key=value about the source, such as mpp=0.5 image=he.tif section=S1 bin_um=16")
    ] = None,
    to: Annotated[str | None, typer.Option(help="h5ad, spatialdata or hest; goes by the target's suffix if not given.")] = None,
) -> None:
    """Write a section in another format, without loss."""
    from stexpr.config import settings_of
    from stexpr.data.convert import ConvertConfig
    from stexpr.data.convert import convert as write

    section = write(source, target, to=to, config=settings_of(ConvertConfig, overrides or [], "convert"))
    left_out = "".join(f"; {count} {reason}" for reason, count in section.left_out.items())
    terminal.say(
        f"{target}: section {section.name} of patient {section.patient}, {section.spots.n_obs} spots x {section.spots.n_vars} "
        f"genes, {section.image.width} x {section.image.height} px at {section.mpp:g} um/px ({section.mpp_source}){left_out}"
    )
    for note in section.notes:
        terminal.say(f"note: {note}")


@app.command()
def train(
    study: Annotated[
        str,
        typer.Argument(
            help="A study: a YAML file, or the name of one that comes with stexpr. Or a prepared cohort, which is trained as "
            "the best study is."
        ),
    ],
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
) -> None:
    """Train all folds of a study of spots or slides, and its baselines; what is done already is not done again."""
    from stexpr.config.any_study import load_any_study
    from stexpr.train.default import default_study, is_prepared
    from stexpr.train.study import run_study

    asked = overrides or []
    loaded = default_study(Path(study), asked) if is_prepared(Path(study)) else load_any_study(study, asked)
    with terminal.bar() as progress:
        run_study(loaded, runs, progress=progress, report=terminal.say)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="A run's folder, or a folder of runs.")],
    refresh: Annotated[bool, typer.Option("--refresh", help="Write the scores anew, as this version computes them.")] = False,
    protocol: Annotated[
        list[str] | None, typer.Option(help="Print the same predictions under this protocol; `all` for every preset.")
    ] = None,
    cohort: Annotated[str | None, typer.Option(help="With --protocol: take only the runs on this cohort.")] = None,
) -> None:
    """Compute the scores of runs again from their predictions, and compare them with their records."""
    from stexpr.evaluate.inflation import inflation
    from stexpr.train.evaluate import evaluate_runs

    with terminal.bar() as progress:
        if protocol:
            terminal.say(inflation(run, protocol, cohort=cohort, progress=progress).markdown())
            return
        for line in evaluate_runs(run, refresh=refresh, progress=progress):
            terminal.say(line)


@app.command()
def leaderboard(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")],
    *,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the tables.")] = Path("leaderboard"),
    cohort: Annotated[str | None, typer.Option(help="Take only the runs on this cohort.")] = None,
    protocol: Annotated[str | None, typer.Option(help="Take only the runs under this protocol.")] = None,
    slides: Annotated[bool, typer.Option("--slides", help="Rank slide heads, of a folder with runs of both kinds.")] = False,
    html: Annotated[bool, typer.Option("--html", help="Also write index.html, a page that needs no network.")] = False,
    maps: Annotated[list[str] | None, typer.Option(help="With --html: a model whose maps are shown; several times.")] = None,
    images: Annotated[Path | None, typer.Option(help="With --html: the prepared cohort, for the pictures.")] = None,
    wandb: Annotated[str | None, typer.Option(help="Also log tables and figures to this Weights & Biases project.")] = None,
) -> None:
    """Rank models and genes, or slide heads, from the records of their runs."""
    from stexpr.cli.boards import slide_board, spot_board
    from stexpr.evaluate.records import read_records

    found = read_records(runs)
    if slides or (found.slides and not found.complete):
        slide_board(runs, output, cohort=cohort, protocol=protocol, html=html, wandb=wandb)
    else:
        spot_board(runs, output, cohort=cohort, protocol=protocol, html=html, maps=maps, images=images, wandb=wandb)


@app.command()
def audit(
    path: Annotated[Path, typer.Argument(help="A prepared cohort, a run, or a folder of runs.")],
    cohort: Annotated[Path | None, typer.Option(help="Where the runs' cohort is now.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the findings as JSON.")] = None,
) -> None:
    """Look for leakage, duplicates and misplaced spots; exit code 1 when test data leaked."""
    from stexpr.evaluate.audit.report import audit as look

    with terminal.bar() as progress:
        found = look(path, cohort=cohort, progress=progress)
    terminal.show_audit(found)
    if output is not None:
        found.write(output)
    if found.leaks:
        raise typer.Exit(1)


@app.command("hest-bench")
def hest_bench(
    folder: Annotated[Path, typer.Argument(help="HEST-Benchmark's folder, or that of one task.")],
    encoder: Annotated[str, typer.Option(help="Any backbone by name, or the folder of an exported model.")],
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the tables.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only this task; several times.")] = None,
    random_weights: Annotated[bool, typer.Option("--random-weights", help="Do not load the encoder's weights.")] = False,
    weights: Annotated[Path | None, typer.Option(help="A safetensors file with weights of the named architecture.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch weights that are not in the cache.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda …")] = "auto",
) -> None:
    """Score a frozen encoder on the HEST-Benchmark, as it does and in honest variants."""
    from stexpr.evaluate.hest.bench import hest_bench as score

    with terminal.bar() as progress:
        found = score(
            folder,
            encoder,
            tasks=task,
            pretrained=not random_weights,
            weights=weights,
            download=download,
            device=device,
            progress=progress,
        )
    terminal.say(found.markdown())
    if output is not None:
        terminal.say(f"written to {found.write(output).parent}")


@app.command()
def doctor() -> None:
    """Check versions, the GPU, openslide, the cache folder and the torch/torchvision pair."""
    from stexpr.cli.doctor import examine

    findings = examine()
    terminal.show_findings(findings)
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


def _has_spokesman() -> bool:
    """Whether another process of the same training says what all of them have to say."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and os.environ.get("RANK", "0") != "0"


def main() -> None:
    """Run the command line; what stexpr refuses is one line on stderr and exit code 2."""
    keep_freed_memory()
    try:
        app()
    except StexprError as err:
        if not getattr(err, "said", _has_spokesman()):
            terminal.fail(str(err))
        sys.exit(getattr(err, "exit_code", 2))
    except OSError as err:
        if err.errno not in (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EPERM, errno.EDQUOT):
            raise
        terminal.fail(
            f"cannot write {err.filename or 'to the output folder'}: {err.strerror}; free space or take another folder"
        )
        sys.exit(2)
