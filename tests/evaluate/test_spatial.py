"""Maps against esda, squidpy, scikit-image and scikit-learn, on the layouts that occur."""

from collections.abc import Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.neighbors import neighbor_weights, spot_positions
from stexpr.errors import MetricError
from stexpr.evaluate.spatial import (
    bivariate_moran_per_gene,
    moran_per_gene,
    ssim_per_gene,
)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Users run without shape checks: what they see for unlike shapes is our own error."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def square(rows: int = 12, columns: int = 15, pitch: float = 200.0) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.divmod(np.arange(rows * columns), columns)
    return x * pitch, y * pitch


def hexagons(rows: int = 14, columns: int = 12, pitch: float = 100.0) -> tuple[np.ndarray, np.ndarray]:
    y, x = np.divmod(np.arange(rows * columns), columns)
    return (x + y % 2 / 2) * pitch, y * pitch * np.sqrt(3) / 2


def maps(n: int, seed: int = 0, genes: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """A measured map with a wave in it, and a prediction that knows part of it."""
    rng = np.random.default_rng(seed)
    wave = np.sin(np.arange(n) / 9)[:, None]
    measured = wave * np.arange(genes) + rng.normal(size=(n, genes))
    return 0.3 * measured + 0.4 * rng.normal(size=(n, genes)) + 2, measured


def links(weights: sp.csr_matrix) -> list[int]:
    """How many spots have 0, 1, 2 ... neighbors."""
    return np.bincount(np.diff(weights.indptr)).tolist()


@pytest.mark.parametrize("angle", [0.0, 0.3, np.pi / 4])
def test_square_arrays_link_four_neighbors_however_they_lie(angle: float) -> None:
    x, y = square()
    weights = neighbor_weights(np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y)
    assert links(weights) == [0, 0, 4, 2 * (10 + 13), 10 * 13]
    np.testing.assert_allclose(weights.sum(axis=1), 1)


def test_hexagons_link_six_neighbors() -> None:
    inside = np.diff(neighbor_weights(*hexagons()).indptr).reshape(14, 12)[1:-1, 1:-1]
    assert (inside == 6).all()


def test_diagonals_join_on_request() -> None:
    assert links(neighbor_weights(*square(), reach=1.5))[-1] == 10 * 13
    assert len(links(neighbor_weights(*square(), reach=1.5))) == 9


def test_jitter_as_found_on_images_keeps_the_grid() -> None:
    x, y = square()
    rng = np.random.default_rng(0)
    jittered = neighbor_weights(x + rng.normal(0, 8, x.size), y + rng.normal(0, 8, y.size))
    assert (jittered.astype(bool) != neighbor_weights(x, y).astype(bool)).nnz == 0


def test_her2st_spots_have_four_neighbors(shared_data: Any) -> None:
    import pandas as pd

    spots = pd.read_csv(shared_data / "her2st" / "spots" / "C3_selection.tsv", sep="\t").query("selected == 1")
    counts = links(neighbor_weights(spots["pixel_x"].to_numpy(float), spots["pixel_y"].to_numpy(float)))
    assert counts[0] == 0
    assert sum(counts[5:]) <= 0.05 * len(spots)
    assert counts[4] > 0.65 * len(spots)


def test_an_isolated_spot_has_no_weight_and_no_say() -> None:
    x, y = square()
    _, measured = maps(180)
    alone = neighbor_weights(np.r_[x, 9e4], np.r_[y, 9e4])
    assert links(alone)[0] == 1
    assert alone.sum() == 180
    mean = np.vstack([measured, measured.mean(axis=0)])
    # I = (spots / links) * lagged products / squares: a spot at the mean adds to the spots alone
    np.testing.assert_allclose(moran_per_gene(mean, alone), moran_per_gene(measured, neighbor_weights(x, y)) * 181 / 180)


def test_neighbors_are_mutual_and_do_not_depend_on_the_order() -> None:
    x, y = hexagons()
    keep = np.random.default_rng(1).permutation(x.size)[:120]
    weights = neighbor_weights(x, y)
    assert (weights.astype(bool) != weights.T.astype(bool)).nnz == 0
    order = np.argsort(keep)
    some, shuffled = neighbor_weights(x[keep[order]], y[keep[order]]), neighbor_weights(x[keep], y[keep])
    assert abs(shuffled[order][:, order] - some).max() < 1e-12


def pysal_weights(weights: sp.csr_matrix) -> Any:
    from libpysal.weights import WSP

    return WSP(sp.csr_array(weights)).to_W(silence_warnings=True)


@pytest.mark.parametrize("layout", [square, hexagons])
def test_moran_equals_esda(layout: Any) -> None:
    import esda

    x, y = layout()
    predicted, measured = maps(x.size)
    weights = neighbor_weights(x, y)
    w = pysal_weights(weights)
    expected = [esda.Moran(gene, w, permutations=0).I for gene in measured.T]
    np.testing.assert_allclose(moran_per_gene(measured, weights), expected, atol=1e-10)
    pairs = zip(predicted.T, measured.T, strict=True)
    both = [esda.Moran_BV(p, m, w, permutations=0).I for p, m in pairs]
    np.testing.assert_allclose(bivariate_moran_per_gene(predicted, measured, weights), both, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*is not a valid key!:SyntaxWarning")  # squidpy's own docstrings, at its import
def test_moran_with_isolated_spots_equals_squidpy() -> None:
    import anndata
    import squidpy

    x, y = square(8, 9)
    x[0] -= 5000
    _, measured = maps(72)
    weights = neighbor_weights(x, y)
    data = anndata.AnnData(measured, obsp={"spatial_connectivities": weights})
    table = squidpy.gr.spatial_autocorr(data, mode="moran", n_perms=None, n_jobs=1, copy=True, show_progress_bar=False)
    np.testing.assert_allclose(moran_per_gene(measured, weights), table["I"][data.var_names], atol=1e-6)


def test_moran_tells_smooth_from_rough() -> None:
    x, y = square(20, 20)
    weights = neighbor_weights(x, y)
    values = np.stack([x + y, (x + y) / 200 % 2, np.random.default_rng(0).normal(size=400)], axis=1)
    smooth, checkers, noise = moran_per_gene(values, weights)
    assert smooth > 0.9
    assert checkers == pytest.approx(-1)
    assert abs(noise) < 0.1


def test_moran_is_nan_where_undefined() -> None:
    x, y = square()
    predicted, measured = maps(180)
    predicted[:, 1] = measured[:, 3] = 0.1 + 0.2
    undefined = [False, True, False, True, False]
    weights = neighbor_weights(x, y)
    assert np.isnan(moran_per_gene(predicted, weights)).tolist() == [False, True, False, False, False]
    assert np.isnan(bivariate_moran_per_gene(predicted, measured, weights)).tolist() == undefined
    assert np.isnan(ssim_per_gene(predicted, measured, x, y)).tolist() == undefined
    assert np.isnan(moran_per_gene(measured, sp.csr_matrix((180, 180)))).all()


@pytest.mark.parametrize("window", [3, 7, 9])
def test_similarity_on_a_full_rectangle_equals_scikit_image(window: int) -> None:
    from skimage.metrics import structural_similarity

    x, y = square(16, 21)
    predicted, measured = maps(x.size)
    p, m = ((v - v.mean(axis=0)) / v.std(axis=0) for v in (predicted, measured))
    low = np.minimum(p.min(axis=0), m.min(axis=0))
    p, m = p - low, m - low
    expected = []
    for one, other in zip(p.T.reshape(-1, 16, 21), m.T.reshape(-1, 16, 21), strict=True):
        data_range = max(one.max(), other.max())
        expected.append(structural_similarity(one, other, win_size=window, data_range=data_range))
    np.testing.assert_allclose(ssim_per_gene(predicted, measured, x, y, window=window), expected, atol=1e-10)
    order = np.random.default_rng(0).permutation(x.size)
    shuffled = ssim_per_gene(predicted[order], measured[order], x[order], y[order], window=window)
    np.testing.assert_allclose(shuffled, expected, atol=1e-10)


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 99), st.floats(0.01, 50), st.floats(-9, 9))
@pytest.mark.parametrize("layout", [square, hexagons])
def test_similarity_laws(layout: Any, seed: int, scale: float, shift: float) -> None:
    x, y = layout()
    predicted, measured = maps(x.size, seed)
    keep = np.random.default_rng(seed).random(x.size) < 0.95  # spots are missing inside the tissue
    x, y, predicted, measured = x[keep], y[keep], predicted[keep], measured[keep]
    similarity = ssim_per_gene(predicted, measured, x, y)
    assert (np.abs(similarity) <= 1).all()
    np.testing.assert_allclose(ssim_per_gene(measured, predicted, x, y), similarity, atol=1e-10)
    np.testing.assert_allclose(ssim_per_gene(predicted * scale + shift, measured, x, y), similarity, atol=1e-8)
    np.testing.assert_allclose(ssim_per_gene(measured, measured, x, y), 1)
    assert (ssim_per_gene(-measured, measured, x, y) < 0).all()


def test_windows_with_missing_spots_equal_those_by_hand() -> None:
    x, y = hexagons()
    keep = np.random.default_rng(0).random(x.size) < 0.93
    x, y = x[keep], y[keep]
    predicted, measured = maps(x.size, genes=2)
    inside = (np.abs(x[:, None] - x) <= 350) & (np.abs(y[:, None] - y) <= 350)
    n = inside.sum(axis=1)
    full = inside[n > n.max() - 7]
    assert 20 < len(full) < len(x)  # the rim is left out, windows with few spots missing are not
    for gene, found in enumerate(ssim_per_gene(predicted, measured, x, y)):
        p, m = ((v - v.mean()) / v.std() for v in (predicted[:, gene], measured[:, gene]))
        low = min(p.min(), m.min())
        c1, c2 = ((k * (max(p.max(), m.max()) - low)) ** 2 for k in (0.01, 0.03))
        values = []
        for window in full:
            a, b = p[window] - low, m[window] - low
            luminance = (2 * a.mean() * b.mean() + c1) / (a.mean() ** 2 + b.mean() ** 2 + c1)
            values.append(luminance * (2 * np.cov(a, b)[0, 1] + c2) / (a.var(ddof=1) + b.var(ddof=1) + c2))
        assert found == pytest.approx(np.mean(values), abs=1e-10)


def test_tissue_too_thin_for_a_window_has_no_similarity() -> None:
    x, y = square(3, 30)
    predicted, measured = maps(90)
    assert np.isnan(ssim_per_gene(predicted, measured, x, y)).all()
    assert np.isfinite(ssim_per_gene(predicted, measured, x, y, window=3)).all()


def test_what_is_refused(unchecked: None) -> None:
    x, y = square()
    predicted, measured = maps(180)
    with pytest.raises(MetricError, match="180 x and 179 y"):
        spot_positions(x, y[1:])
    with pytest.raises(MetricError, match="1 of 180 spots have no finite position"):
        neighbor_weights(np.where(x == x[3], np.where(y == y[3], np.nan, x), x), y)
    with pytest.raises(MetricError, match="two positions"):
        neighbor_weights(np.ones(4), np.ones(4))
    with pytest.raises(MetricError, match="share their position"):
        neighbor_weights(np.repeat(x, 4), np.repeat(y, 4))
    with pytest.raises(MetricError, match="weights are 12 x 12 for 180 spots"):
        moran_per_gene(measured, neighbor_weights(*square(3, 4)))
    with pytest.raises(MetricError, match="not finite"):
        moran_per_gene(np.where(measured == measured[0, 0], np.inf, measured), neighbor_weights(x, y))
    for window in (1, 4):
        with pytest.raises(MetricError, match="odd and at least 3"):
            ssim_per_gene(predicted, measured, x, y, window=window)
    with pytest.raises(MetricError, match="179 positions for 180 spots"):
        ssim_per_gene(predicted, measured, x[1:], y[1:])
