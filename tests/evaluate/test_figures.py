"""Figures hold what they should; a person looks at them elsewhere."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from page_boards import PATIENTS, make_board
from PIL import Image

from stexpr.evaluate.figures import (
    gene_ranks_figure,
    leaderboard_figure,
    r_vs_ceiling_figure,
    save_figure,
)
from stexpr.evaluate.leaderboard import leaderboard
from stexpr.evaluate.records import Run


def test_leaderboard_figure_shows_every_model_and_patient(write_runs: Callable[..., list[Run]], tmp_path: Path) -> None:
    board = leaderboard(write_runs())
    figure = leaderboard_figure(board.title, board.models, board.patients)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == board.models["model"].tolist()
    assert axes.yaxis_inverted()  # the best on top
    assert [text.get_text() for text in axes.texts] == ["r undefined"]
    drawn = {round(float(x), 6) for line in axes.lines for x in np.atleast_1d(line.get_xdata()) if not np.isnan(x)}
    wanted = [*board.models["r"].dropna(), *board.models["r_low"].dropna(), *board.patients.loc["tiny"]]
    assert {round(float(value), 6) for value in wanted} <= drawn
    save_figure(figure, tmp_path / "board.part")
    with Image.open(tmp_path / "board.part") as image:
        assert image.format == "PNG"
        assert image.width > 500


def test_kinds_have_shapes_and_ceilings_are_drawn_where_known() -> None:
    board = make_board()
    figure = leaderboard_figure("t", board.models, board.patients)
    shapes = {line.get_marker() for line in figure.axes[0].lines}
    assert {"o", "s", "D", "|"} <= shapes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "network",
        "baseline",
        "reference",
        "one patient",
        "noise ceiling",
    ]
    ticks = [line.get_xdata()[0] for line in figure.axes[0].lines if line.get_marker() == "|"]
    assert ticks == [0.6] * len(board.models)
    plain = make_board(extras=False)
    assert "|" not in {line.get_marker() for line in leaderboard_figure("t", plain.models, plain.patients).axes[0].lines}
    assert len(PATIENTS) == 3


def test_r_against_ceiling_draws_defined_genes_and_crosses() -> None:
    ceiling = np.array([0.9, 0.5, 0.05, np.nan, 0.4])
    r = np.array([0.6, -0.3, 0.01, 0.5, np.nan])
    figure = r_vs_ceiling_figure(ceiling, r, ceiling < 0.1, "tiny")
    axes = figure.axes[0]
    drawn = {line.get_label(): (line.get_marker(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines}
    assert drawn["gene"] == ("o", [0.9, 0.5], [0.6, -0.3])
    assert drawn["unpredictable gene"] == ("x", [0.05], [0.01])
    assert any(list(line.get_xdata()) == [0, 1] and list(line.get_ydata()) == [0, 1] for line in axes.lines)
    assert axes.get_ylim()[0] < -0.3
    assert axes.get_title() == "tiny, 3 of 5 genes"


def test_gene_ranks_are_drawn_from_the_top() -> None:
    figure = gene_ranks_figure(["A", "B"], np.array([0.5, 0.2]), np.array([0.8, np.nan]), "tiny")
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B"]
    assert axes.yaxis_inverted()
    dots, limits = (line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_marker() in "o|")
    assert list(dots.get_xdata()) == [0.5, 0.2]
    assert limits.get_xdata()[0] == 0.8
    assert len(gene_ranks_figure(["A"], np.array([0.5]), np.array([np.nan]), "t").axes[0].get_legend_handles_labels()[0]) == 1


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_the_same_figure_gives_the_same_bytes(kind: str, tmp_path: Path) -> None:
    for name in ("first", "second"):
        figure = gene_ranks_figure(["TP53", "B"], np.array([0.5, 0.2]), np.array([0.8, 0.3]), "tiny")
        save_figure(figure, tmp_path / name, kind)
    first = (tmp_path / "first").read_bytes()
    assert first == (tmp_path / "second").read_bytes()
    assert b"matplotlib" not in first.lower().replace(b"matplotlib.axis", b"")[:400]
    assert b"Date" not in first
    if kind == "pdf":
        assert b"/Type0" in first  # TrueType outlines with text that can be searched
        assert b"/Type3" not in first
    if kind == "svg":
        assert b">TP53</text>" in first
