"""The board of slide heads as a web page, made of the same parts as that of spots."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

import pandas as pd

from stexpr.evaluate.page import slide_figures, words
from stexpr.evaluate.page.build import Page, write_html
from stexpr.evaluate.page.figures import FIGURE_MODELS
from stexpr.evaluate.page.tables import MARKS
from stexpr.evaluate.records import SlideRun
from stexpr.evaluate.slides.board import SlideBoard, build_slide_board
from stexpr.evaluate.slides.resampling import Draws
from stexpr.evaluate.slides.sections import Section, board_sections, cell_text, heads_section
from stexpr.types import Progress, silent

__all__ = ["publish_slides", "write_slide_page"]

TEXTS: Final = ("model", "target", "a", "b", "verdict", "reason", "measure", "variable", "value", "confounder", "adjusted_for")
TEXTS_TOO: Final = ("kind", "bounds", "hr", "adjusted", "without_pair", "epochs")
FOREST: Final = (
    "Score of the head within folds (circle, 95 %), with that of its color baseline below it (square). The dashed line is "
    "chance."
)
VOLCANO: Final = (
    "Each dot is a target: how well the head ranks patients (across) and how surely it is no chance (up; the top row is the "
    "smallest p there can be). Names stand where there is room, the pointer shows the others. Squares are the "
    "color baseline: what a head and its baseline both see may be stain or site."
)
KAPLAN_MEIER: Final = (
    "Share of patients without the event over time, in groups cut by the training patients of each fold; bands are 95 %, ticks "
    "censored patients. Below: patients still at risk."
)
RELIABILITY: Final = (
    "Of patients given a probability, how many are positive, in bins; bars are 95 %. On the dashed line it means what it says."
)
AGREEMENT: Final = "Predicted against measured values; on the dashed line they are equal."
DIFFERENCE: Final = "Their difference against their mean, with the bias and the limits that hold 95 % of patients."
READING: Final = {
    "AUROC": "Chance that a positive patient has a higher output than a negative one; .5 is chance.",
    "AUPRC": "Mean precision over positive patients; chance is the share of positive patients.",
    "Harrell's and Uno's c": (
        "Chance that of two patients the one with the earlier event has the higher output; Uno's weighs pairs so that "
        "censoring does not matter. Integrated AUC and Brier score average over the horizons; a lower Brier score is better."
    ),
    "quadratic kappa": "Agreement of classes in an order beyond chance, errors weighted by the square of their distance.",
    "Spearman, Pearson, CCC, MAE": (
        "Correlation of ranks; of values; agreement with the line of identity; and mean distance in the unit of the target."
    ),
    "p, q": (
        "p: how often shuffled predictions score as well. q: the false discovery rate over the yes-or-no targets of the head "
        "at which the target would be called."
    ),
    "interval": (
        "What would vary with other test patients, the trained heads as they are. It does not hold how training again, on "
        "other patients, would change them."
    ),
}


def publish_slides(
    runs: Path | Sequence[SlideRun],
    output: Path,
    *,
    cohort: str | None = None,
    protocol: str | None = None,
    draws: Draws | None = None,
    progress: Progress = silent,
) -> SlideBoard:
    """Rank the heads of slide runs and write their tables, pictures and page.

    Args:
        runs: Folder of runs, or finished runs.
        output: Folder of what is written.
        cohort: Name or hash, to take only the runs on this cohort.
        protocol: Name or hash, to take only the runs under this protocol.
        draws: How often to draw; see `build_slide_board`.
        progress: Shows what is done.

    Raises:
        DataError: A run lacks a file, or the output cannot be written.
        ProtocolError: The runs must not share a table, or the output holds another board.
    """
    board = build_slide_board(runs, cohort=cohort, protocol=protocol, draws=draws, progress=progress)
    board.write(output)
    write_slide_page(board, output)
    return board


def write_slide_page(board: SlideBoard, folder: Path) -> Path:
    """Write `index.html` and the CSV files it links to; the same board gives the same bytes.

    Returns:
        Path of the page.

    Raises:
        DataError: The folder cannot be written.
    """
    contents, headings, data = _contents(board)
    downloads = board.tables()
    contents["downloads"], headings["downloads"] = words.downloads(list(downloads)), "Downloads"
    n, patients = len(board.models), board.models["n_patients"].iloc[0]
    lead = f"{n} head{'s' if n != 1 else ''} on {patients:,} patients, {board.targets['target'].nunique()} targets"
    verdict = board.notes[0] if board.notes else ""
    page = Page("Slide leaderboard", "heads", board.title, lead, verdict, [], headings, contents, data)
    return write_html(page, downloads, folder)


def _contents(board: SlideBoard) -> tuple[dict[str, str], dict[str, str], dict[str, Any]]:
    """Return the sections of the page in their order, their headings, and the data their scripts read."""
    card = "".join(f"<dt>{escape(heading)}</dt><dd>{escape(sentence)}</dd>" for heading, sentence in board.card)
    heads = heads_section(board)
    contents = {"protocol": f'<dl class="card">{card}</dl>\n', "models": _table(heads, board.models)}
    headings, plots = (
        {"protocol": "Protocol", "models": heads.heading, "scores": "Scores"},
        {"scores": slide_figures.ranking(board)},
    )
    about = "Mean score of each head over the tested targets of the first kind, and its single targets."
    contents["scores"] = words.figure("scores", "Scores", escape(about))
    for section in board_sections(board):
        drawn, figures = _drawn(board, section)
        plots |= figures
        contents[section.key], headings[section.key] = drawn + _table(section, board.models), section.heading
    pairs = "".join(f"<dt>{escape(word)}</dt><dd>{escape(text)}</dd>" for word, text in READING.items())
    contents["reading"], headings["reading"] = f'<dl class="words">{pairs}</dl>\n', "How to read this"
    contents["notes"] = words.listed(board.notes[1:]) if len(board.notes) > 1 else "<p>None.</p>"
    headings["notes"] = "Notes"
    return contents, headings, {f"{key}-plot-data": plot for key, plot in plots.items()}


def _drawn(board: SlideBoard, section: Section) -> tuple[str, dict[str, Any]]:
    """Write the places of a section's figures, and return the figures."""
    details, leader, heads = board.details, board.leader, slide_figures.compared_heads(board)
    if section.key == "risk":
        return _picked(board, "survival-curves", section, KAPLAN_MEIER, board.survival.curves, slide_figures.survival_curves)
    if section.key == "calibration":
        return _picked(board, "reliability", section, RELIABILITY, details.reliability, slide_figures.reliability)
    if section.key == "agreement":
        first, second = slide_figures.agreement_figures(board)
        options = slide_figures.choices(details.points)
        selected = next(name for name in options if name.endswith(f": {leader}"))
        about, label = escape(AGREEMENT), "Predicted and measured"
        place = words.figure("values", label, about, options, selected, picked=PICKED, also="differences")
        other = words.figure("differences", "Differences", escape(DIFFERENCE), square=True)
        return place + other, {"values": first, "differences": second}
    if "score" not in section.frame or section.key in ("subgroups",):
        return "", {}
    targets = list(dict.fromkeys(section.frame["target"].astype(str)))
    key, some = f"forest-{section.key}", ""
    if len(targets) > FIGURE_MODELS:
        some = f" Shown are {FIGURE_MODELS} of {len(targets)} targets, of smallest p by {leader}; targets.csv holds all."
    plots = {key: slide_figures.forest(board, section.key, targets[:FIGURE_MODELS])}
    about, picked = escape(FOREST + some), "Head"
    if section.key != "binary":
        return words.figure(key, section.heading, about, heads, leader, picked=picked, square=False), plots
    plots["volcano"] = slide_figures.volcano(board)
    place = words.figure("volcano", "Effect and p", escape(VOLCANO), heads, leader, picked=picked, also=key, square=False)
    return place + words.figure(key, section.heading, about), plots


PICKED: Final = "Target and head"


def _picked(
    board: SlideBoard, key: str, section: Section, about: str, frame: pd.DataFrame, draw: Any
) -> tuple[str, dict[str, Any]]:
    """A figure that shows one head on one target, the leading head first."""
    if frame.empty:
        return "", {}
    options = slide_figures.choices(frame)
    selected = next((name for name in options if name.endswith(f": {board.leader}")), options[0])
    return words.figure(key, section.heading, escape(about), options, selected, picked=PICKED), {key: draw(board)}


def _table(section: Section, models: pd.DataFrame) -> str:
    """Write a section as an HTML table, which is whole also where no script runs."""
    frame = section.frame
    kinds = dict(zip(models["model"], models["kind"], strict=True))
    columns = {
        name: text for name, text in section.columns.items() if name == "bounds" or (name in frame and not _empty(frame[name]))
    }
    first = "model" if section.key == "models" else next(iter(columns))
    heads = "".join(f'<th scope="col" class="{_class(name, first)}">{escape(text)}</th>' for name, text in columns.items())
    rows = "".join(
        f'<tr class="{kinds.get(row.get("model"), "")}">{"".join(_cell(name, row, first, kinds) for name in columns)}</tr>'
        for row in frame.to_dict("records")
    )
    what = "heads" if section.key == "models" else "rows"
    table = (
        f'<table id="{section.key}-table" data-rows="{what}"><caption class="hidden">{escape(section.heading)}</caption>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    )
    return words.framed(table, section.heading, section.about)


def _empty(column: "pd.Series[Any]") -> bool:
    """Whether a column says nothing: no value, or no word."""
    return bool((column.isna() | (column.astype(str) == "")).all())


def _class(name: str, first: str) -> str:
    return "name" if name == first else "text" if name in (*TEXTS, *TEXTS_TOO) else "number"


def _cell(name: str, row: dict[Any, Any], first: str, kinds: dict[str, str]) -> str:
    text, kind = escape(cell_text(name, row)), _class(name, first)
    if name == "kind":
        return f'<td class="text"><span class="mark" aria-hidden="true">{MARKS.get(row[name], "")}</span> {text}</td>'
    if name in ("model", "a", "b") and name != first:
        mark = f'<span class="mark" aria-hidden="true">{MARKS.get(kinds.get(row[name], ""), "")}</span> '
        text = f"{mark if name == 'model' else ''}{text}"
    if kind != "number":
        order = f' data-order="{"" if pd.isna(row["low"]) else row["low"]}"' if name == "bounds" else ""
        tag = "th" if kind == "name" else "td"
        return f'<{tag} class="{kind}"{" scope=" + chr(34) + "row" + chr(34) if tag == "th" else ""}{order}>{text}</{tag}>'
    return f'<td class="number" data-order="{"" if pd.isna(row[name]) else row[name]}">{text}</td>'
