"""Figures hold what they should; a person looks at them elsewhere."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from planted_runs import make_predictions

from stexpr.evaluate.figures import gene_map_figure, leaderboard_figure, save_figure
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


def test_gene_map_is_an_image_of_the_section() -> None:
    predictions = make_predictions(spots=50)
    x, y = (predictions.obs[axis].to_numpy(dtype=np.float64) for axis in ("x_um", "y_um"))
    measured, predicted = predictions.layers["measured"][:, 0], predictions.X[:, 0]
    figure = gene_map_figure(x, y, measured, predicted, "GENE0 in A1")
    left, right = figure.axes[:2]
    for axes, values, name in ((left, measured, "measured"), (right, predicted, "predicted")):
        assert axes.get_title() == name
        assert axes.yaxis_inverted()
        assert axes.get_aspect() == 1
        np.testing.assert_array_equal(axes.collections[0].get_array(), values)
    assert len(figure.axes) == 4  # and two color bars
    r = np.corrcoef(measured, predicted)[0, 1]
    assert figure.get_suptitle() == f"GENE0 in A1, r = {r:.2f}"
    flat = gene_map_figure(x, y, measured, np.ones_like(predicted), "GENE0 in A1")
    assert flat.get_suptitle().endswith("r undefined")


def test_no_pyplot_state_is_made() -> None:
    import subprocess

    code = (
        "import sys, numpy as np; from stexpr.evaluate.figures import gene_map_figure; "
        "assert 'matplotlib' not in sys.modules; a = np.arange(4.0); gene_map_figure(a, a, a, a, 't'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
