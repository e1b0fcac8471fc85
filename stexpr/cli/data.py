"""`stexpr data`: the cohorts stexpr knows, their raw files and checksums; and downloads that become cohorts as they are."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stexpr.cli import terminal
from stexpr.errors import ConfigError

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find them
    import stexpr.data.store

app = typer.Typer(help="List, fetch and verify the raw files of cohorts.", no_args_is_help=True)


@app.command("list")
def list_cards() -> None:
    """List the data cards that come with stexpr."""
    from stexpr.data import cards

    rows = [
        (card.name, card.species, card.tissue, card.n_patients, card.n_sections, card.n_spots, card.access, card.license)
        for card in cards.list_cards()
    ]
    terminal.show_table(("card", "species", "tissue", "patients", "sections", "spots", "access", "license"), rows)


@app.command()
def fetch(
    card: Annotated[str, typer.Argument(help="Name of a card, or a card file.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the files; raw/<card> if not given.")
    ] = None,
    source: Annotated[Path | None, typer.Option("--from", help="Take the files from a local mirror.")] = None,
) -> None:
    """Download the raw files of a cohort, or copy them from a mirror, and verify their checksums."""
    from stexpr.data import cards
    from stexpr.data import fetch as fetching

    loaded = cards.load_card(card)
    target = output or Path("raw") / loaded.name
    with terminal.bar() as progress:
        report = fetching.fetch(loaded, target, source=source, progress=progress)
    checked = "every checksum right" if not report.unchecked else f"no checksum known for {', '.join(report.unchecked)}"
    terminal.say(f"{target}: {len(report.fetched)} files fetched, {len(report.present)} there before, {checked}")


@app.command()
def verify(
    card: Annotated[str, typer.Argument(help="Name of a card, a card file, or the folder of a prepared cohort.")],
    folder: Annotated[Path | None, typer.Argument(help="Folder of the raw files; raw/<card> if not given.")] = None,
) -> None:
    """Check the files of a cohort against their checksums; exit code 1 if one is missing or altered."""
    from stexpr.data import cards
    from stexpr.data import fetch as fetching
    from stexpr.data.store import PreparedCohort

    if (Path(card) / "cohort.json").is_file():
        cohort = PreparedCohort.open(card)
        with terminal.bar() as progress:
            cohort.verify(progress=progress)
        terminal.say(f"{card}: every file of the prepared cohort is as it was written")
        return
    loaded = cards.load_card(card)
    report = fetching.verify(loaded, folder or Path("raw") / loaded.name)
    terminal.show_table(("file", "state"), report.states.items())
    if not report.whole:
        raise typer.Exit(1)


def adopted(
    folder: Path, patients: Path | None, source: Path | None, output: Path | None, overrides: Sequence[str]
) -> "stexpr.data.store.PreparedCohort":
    """Do what `stexpr prepare --adopt` asks for.

    Raises:
        ConfigError: An option of the other way to prepare stands beside it.
    """
    from stexpr.config import AdoptConfig, settings_of
    from stexpr.data.adopt import adopt

    for option, value in (("--from", source), ("--output", output)):
        if value is not None:
            raise ConfigError(f"--adopt makes {folder} itself a cohort and copies nothing: leave {option} {value} out")
    settings = settings_of(AdoptConfig, overrides, "--adopt")
    with terminal.bar() as progress:
        return adopt(folder, settings, patients=patients, progress=progress)
