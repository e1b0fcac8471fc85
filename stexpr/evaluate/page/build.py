"""The leaderboard as a web page: one file that opens from disk and asks no network, with the tables beside it as CSV."""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, Final

from stexpr.config.files import write_whole
from stexpr.config.versions import versions
from stexpr.evaluate.leaderboard import Leaderboard
from stexpr.evaluate.page import figures, tables, words
from stexpr.evaluate.page.maps import SectionMap
from stexpr.evaluate.page.payload import json_text, maps_payload
from stexpr.evaluate.page.view import BoardView, board_view

__all__ = ["Page", "write_html", "write_page"]

PAGE: Final = "index.html"
HEADINGS: Final = {
    "protocol": "Protocol",
    "models": "Models",
    "scores": "Scores by model",
    "genes-spread": "Spread over genes",
    "heat": "Genes by model",
    "ceiling": "Against the noise ceiling",
    "auxiliary": "With and without auxiliary genes",
    "comparisons": "Models against each other",
    "maps": "Maps",
    "genes": "Genes",
    "reading": "How to read this",
    "notes": "Notes",
    "downloads": "Downloads",
}


def write_page(board: Leaderboard, folder: Path, *, maps: Sequence[SectionMap] = ()) -> Path:
    """Write `index.html` and the CSV files it links to.

    The same board and maps give the same bytes. Everything the page needs is inside it, and its own content policy forbids
    the browser to load anything else or to run a script that is not the page's own.

    Args:
        board: The leaderboard.
        folder: Made if need be.
        maps: Measured and predicted expression over sections, from `load_maps`.

    Returns:
        Path of the page.

    Raises:
        DataError: The folder cannot be written, or the spots of a map lie off its picture.
    """
    view, downloads = board_view(board), board.tables()
    contents, data = _contents(view, maps, list(downloads))
    page = Page("Leaderboard", "models", view.title, view.lead, view.verdict, view.warnings, HEADINGS, contents, data)
    return write_html(page, downloads, folder)


@dataclass(frozen=True)
class Page:
    """What stands on a page.

    Attributes:
        over: Kind of page, above its title.
        ranked: What is ranked on it, in the section `models`.
        title: Cohort and protocol.
        lead: How much was compared.
        verdict: What it shows, in a sentence or two; empty where nothing does.
        warnings: Sentences that warn of the protocol.
        headings: Plain text by section.
        contents: HTML by section, in their order.
        data: What scripts read, as plain JSON values by id.
    """

    over: str
    ranked: str
    title: str
    lead: str
    verdict: str
    warnings: Sequence[str]
    headings: Mapping[str, str]
    contents: Mapping[str, str]
    data: Mapping[str, Any]


def write_html(page: Page, downloads: Mapping[str, str], folder: Path) -> Path:
    """Write a page and the files it links to.

    Args:
        page: The page.
        downloads: Texts by file name.
        folder: Made if need be.

    Returns:
        Path of `index.html`.

    Raises:
        DataError: The folder cannot be written.
    """
    for name, text in {**downloads, PAGE: _html(page)}.items():
        write_whole(folder / name, partial(Path.write_text, data=text, encoding="utf-8"))
    return folder / PAGE


def _html(page: Page) -> str:
    theme, plotly, script = _own("theme.js"), figures.library(), _own("page.js") + _own("maps.js")
    headings = {key: escape(heading) for key, heading in page.headings.items()}
    values = {
        "policy": _policy([theme, plotly, script]),
        "over": escape(page.over),
        "ranked": escape(page.ranked),
        "title": escape(page.title),
        "lead": escape(page.lead),
        "verdict": f'<p class="verdict">{escape(page.verdict)}</p>' if page.verdict else "",
        "nav": "".join(f'<a href="#{key}">{headings[key]}</a>' for key in page.contents),
        "warnings": "".join(
            f'<div class="warning" role="note"><p><strong>Warning.</strong> {escape(sentence)}</p></div>'
            for sentence in page.warnings
        ),
        "sections": "\n".join(words.section(key, headings[key], content) for key, content in page.contents.items()),
        "data": "\n".join(
            f'<script type="application/json" id="{key}">{json_text(value)}</script>'
            for key, value in {**page.data, "datatables": tables.bundle()}.items()
        ),
        "css": _own("page.css"),
        "theme": theme,
        "plotly": plotly,
        "script": script,
        "version": escape(versions(["stexpr"])["stexpr"]),
    }
    return Template(_own("page.html")).substitute(values)


def _own(name: str) -> str:
    return files("stexpr.evaluate.page").joinpath(name).read_text(encoding="utf-8")


def _policy(scripts: Sequence[str]) -> str:
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes} blob:; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _contents(view: BoardView, maps: Sequence[SectionMap], downloads: Sequence[str]) -> tuple[dict[str, str], dict[str, Any]]:
    """Return the sections of the page in their order, and the data their scripts read."""
    plots = figures.board_figures(view)
    pickers = {
        "ceiling": view.names[: figures.SCATTERED_MODELS],
        "auxiliary": [view.names[pair.added] for pair in view.pairs],
    }
    contents = {
        "protocol": words.card(view),
        "models": words.framed(tables.models_table(view.models), HEADINGS["models"], words.MODELS),
        **{
            key: words.figure(key, HEADINGS[key], words.caption(key, view), pickers.get(key, []), view.names[view.leading])
            for key in plots
        },
    }
    if comparisons := tables.comparisons_table(view.comparisons):
        contents["comparisons"] = words.framed(comparisons, HEADINGS["comparisons"], words.COMPARISONS)
    data: dict[str, Any] = {f"{key}-plot-data": plot for key, plot in plots.items()}
    payload = maps_payload(maps, view.genes)
    if payload["sections"]:
        data["maps-data"] = payload
    contents["maps"] = words.maps(payload, maps, view)
    contents["genes"] = words.framed('<table id="genes-table"></table>', HEADINGS["genes"], words.genes(view))
    data["genes-data"] = tables.genes_data(view)
    contents["reading"] = words.reading(view)
    contents["notes"] = words.listed(view.notes) if view.notes else "<p>None.</p>"
    contents["downloads"] = words.downloads(downloads)
    return contents, data
