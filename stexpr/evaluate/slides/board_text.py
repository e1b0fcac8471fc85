"""A slide board as text for people: the protocol first, then the tables, then what they do not say."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from stexpr.evaluate.markdown import escape_cell, table
from stexpr.evaluate.slides.sections import Section, board_sections, cell_text, heads_section

if TYPE_CHECKING:  # named in full below, so that the type checks of the tests can find it
    import stexpr.evaluate.slides.board

__all__ = ["render_slides"]

TOP_TARGETS: Final = 15
OF_LEADER: Final = ("calibration", "confounders", "subgroups")
"""Tables that are long, of which the text shows the leading head's part."""


def render_slides(board: "stexpr.evaluate.slides.board.SlideBoard") -> str:
    """Write a slide board as Markdown, numbers to three decimals."""
    n_targets, heads = board.targets["target"].nunique(), heads_section(board)
    columns = {name: text for name, text in heads.columns.items() if name != "kind"}
    parts = [
        f"# Slide leaderboard: {board.title}",
        f"{len(board.models)} heads on {board.models['n_patients'].iloc[0]:,} patients, {n_targets} "
        f"target{'s' if n_targets != 1 else ''}; baselines in italics.",
        "## Protocol",
        table(["", ""], [[f"**{heading}**", escape_cell(sentence)] for heading, sentence in board.card]),
        *_written(replace(heads, columns=columns)),
    ]
    for section in board_sections(board):
        parts += _written(_cut(section, board.leader))
    notes = "\n".join(f"- {escape_cell(note)}" for note in board.notes) if board.notes else "None."
    return "\n\n".join([*parts, "## Notes", notes]) + "\n"


def _cut(section: Section, leader: str) -> Section:
    """Leave out of a long table what a reader finds in the files, and say so."""
    if section.key in OF_LEADER:
        columns = {name: text for name, text in section.columns.items() if name != "model"}
        frame = section.frame[section.frame["model"] == leader]
        return replace(section, heading=f"{section.heading} of {leader}", frame=frame, columns=columns)
    if "target" not in section.frame:
        return section
    names = list(dict.fromkeys(section.frame["target"]))
    if len(names) <= TOP_TARGETS:
        return section
    shown = section.frame[section.frame["target"].isin(names[:TOP_TARGETS])]
    about = f"{section.about} Shown are {TOP_TARGETS} of {len(names)} targets; the files hold all."
    return replace(section, frame=shown, about=about.strip())


def _written(section: Section) -> list[str]:
    kept = {name: text for name, text in section.columns.items() if name in section.frame or name == "bounds"}
    rows = [[_cell(name, row) for name in kept] for row in section.frame.to_dict("records")]
    words = [escape_cell(section.about)] if section.about else []
    return [f"## {escape_cell(section.heading)}", table([escape_cell(text) for text in kept.values()], rows), *words]


def _cell(name: str, row: dict[Any, Any]) -> str:
    text = escape_cell(cell_text(name, row))
    return f"*{text}*" if name == "model" and row.get("kind") == "baseline" else text
