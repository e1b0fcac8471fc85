"""Maps of a section: what is drawn is what was given; a person looks at them elsewhere."""

import subprocess
import sys

import numpy as np
from planted_runs import make_predictions

from stexpr.evaluate.tissue_maps import (
    Background,
    domain_map_figure,
    feature_colors,
    gene_map_figure,
    rgb_map_figure,
    value_map_figure,
)


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

    code = (
        "import sys, numpy as np; from stexpr.evaluate.tissue_maps import gene_map_figure; "
        "assert 'matplotlib' not in sys.modules; a = np.arange(4.0); gene_map_figure(a, a, a, a, 't'); "
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


X, Y = (axis.ravel().astype(float) for axis in np.meshgrid(np.arange(6) * 10, np.arange(4) * 10))


def test_a_spot_without_a_value_is_gray() -> None:
    values = np.arange(24.0)
    measured = values + np.sin(values)
    predicted = np.where(values < 5, np.nan, values)
    figure = gene_map_figure(X, Y, measured, predicted, "G")
    gray, colored = figure.axes[1].collections
    np.testing.assert_array_equal(gray.get_offsets(), np.stack([X, Y], axis=1)[:5])
    np.testing.assert_array_equal(colored.get_array(), predicted[5:])
    assert figure.get_suptitle() == f"G, r = {np.corrcoef(measured[5:], predicted[5:])[0, 1]:.2f}"
    alone = gene_map_figure(X, Y, None, predicted, "G")
    assert [axes.get_title() for axes in alone.axes[:1]] == ["predicted"]
    assert alone.get_suptitle() == "G"
    nothing = gene_map_figure(X, Y, measured, np.full(24, np.nan), "G")
    assert nothing.get_suptitle() == "G, r undefined"


def test_the_tissue_lies_under_the_spots() -> None:
    background = Background(np.zeros((20, 30, 3), dtype=np.uint8), 300.0, 200.0)
    figure = value_map_figure(X + 100, Y + 50, np.arange(24.0), "novelty", background)
    axes = figure.axes[0]
    (image,) = axes.images
    assert tuple(image.get_extent()) == (0, 300, 200, 0)
    assert image.get_zorder() < axes.collections[0].get_zorder()
    left, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    assert 0 < left < 100 < 150 < right < 300
    assert 0 < top < 50 < 80 < bottom < 200  # y runs down


def test_domains_have_a_color_each_and_are_counted() -> None:
    domain = np.repeat([0, 1, -1], 8)
    figure = domain_map_figure(X, Y, domain, ["a", "b"], "domains")
    colors = figure.axes[0].collections[0].get_facecolors()
    assert len(np.unique(colors, axis=0)) == 3
    assert (colors[:8] == colors[0]).all()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["a (8)", "b (8)", "none (8)"]


def test_features_become_colors() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(50, 3)) * [9.0, 3.0, 1.0] @ np.linalg.qr(rng.normal(size=(8, 8)))[0][:3]
    features[7] = np.nan
    colors, shares = feature_colors(features)
    assert np.isnan(colors[7]).all()
    known = np.delete(colors, 7, axis=0)
    assert (known >= 0).all()
    assert (known <= 1).all()
    assert shares[0] > shares[1] > shares[2]
    np.testing.assert_allclose(shares.sum(), 1)
    line, one = feature_colors(np.arange(10.0)[:, None])
    np.testing.assert_array_equal(line[:, 1:], 0.5)
    np.testing.assert_allclose(one, [1, 0, 0])
    np.testing.assert_array_equal(feature_colors(np.ones((4, 3)))[0], 0.5)
    assert np.isnan(feature_colors(np.full((4, 3), np.nan))[0]).all()
    figure = rgb_map_figure(X, Y, np.tile(colors[7:8], (24, 1)), "X_stexpr", "components")
    assert len(np.unique(figure.axes[0].collections[0].get_facecolors(), axis=0)) == 1
    assert figure.axes[0].get_xlabel() == "components"
