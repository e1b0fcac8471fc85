"""The overview of a slide; a person looks at it elsewhere."""

import numpy as np
import pytest

from slides import slide_pixels, write_slide, write_slide_model
from stexpr.evaluate.overview import overview_figure
from stexpr.inference.slide import predict_slide


@pytest.mark.parametrize("abstain", [False, True])
def test_slide_novelty_and_genes_lie_on_the_same_ground(tmp_path, abstain):
    slide = write_slide(tmp_path / "half.tif", slide_pixels(300, 450, foreign=True), mpp=1.0)
    done = predict_slide(slide, write_slide_model(tmp_path / "model"), tmp_path / "out.h5ad", abstain=abstain)
    patches = done.read(["GENE1", "GENE4"])
    figure = overview_figure(patches, done.mask)
    panels = [axes for axes in figure.axes if axes.get_title()]
    assert [axes.get_title() for axes in panels] == [
        "slide",
        "novelty (foreign above 1)",
        "GENE1, predicted",
        "GENE4, predicted",
    ]
    assert all((axes.get_xlim(), axes.get_ylim()) == ((0, 450), (300, 0)) for axes in panels)
    assert ("withheld" if abstain else "predictions kept") in figure.get_suptitle()
    assert f"{done.n_foreign:,} foreign" in figure.get_suptitle()
    assert [text.get_text() for text in panels[0].texts] == ["100 µm"]
    drawn = panels[2].images[0]
    values = np.asarray(drawn.get_array().filled(np.nan))
    left, right, bottom, top = drawn.get_extent()
    assert values.shape == done.grid.shape
    for i in (0, patches.n_obs // 2, patches.n_obs - 1):
        x, y = patches.obsm["spatial"][i]
        row = int((y - top) / (bottom - top) * values.shape[0])
        column = int((x - left) / (right - left) * values.shape[1])
        np.testing.assert_equal(values[row, column], patches.X[i, 0])
    assert np.isfinite(values).sum() == np.isfinite(patches.X[:, 0]).sum()


def test_a_model_that_cannot_tell_shows_no_novelty(tmp_path):
    slide = write_slide(tmp_path / "a.tif", slide_pixels(300, 450), mpp=1.0)
    model = write_slide_model(tmp_path / "model", reference=False, intervals=False)
    figure = overview_figure(predict_slide(slide, model, tmp_path / "out.h5ad").read(["GENE1"]))
    assert [axes.get_title() for axes in figure.axes if axes.get_title()] == ["slide", "GENE1, predicted"]
    assert "foreign" not in figure.get_suptitle()


def test_a_map_without_any_value_has_no_scale() -> None:
    from matplotlib.figure import Figure

    from stexpr.evaluate.overview import _draw_map

    figure = Figure()
    _draw_map(figure, figure.add_subplot(), (np.full((3, 4), np.nan), (0.0, 4.0, 3.0, 0.0)), "GENE1, predicted")
    (axes,) = figure.axes  # no colorbar beside it
    assert axes.get_title() == "GENE1, predicted: withheld everywhere"
    assert axes.get_xlim() == (0.0, 4.0)
