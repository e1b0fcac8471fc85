"""The grid over a slide's tissue."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.grid import tissue_grid
from stexpr.data.tissue import TissueMask
from stexpr.errors import ConfigError, DataError


def disc_mask(width: int, height: int, cells: int = 60) -> TissueMask:
    y, x = np.mgrid[:cells, :cells] / cells
    return TissueMask((x - 0.5) ** 2 + (y - 0.4) ** 2 < 0.35, width, height)


@settings(deadline=None, max_examples=40)
@given(
    width=st.integers(300, 900),
    height=st.integers(300, 900),
    side=st.floats(20, 290),
    stride=st.floats(15, 400),
    least=st.floats(0, 0.1),
)
def test_every_cell_with_enough_tissue_is_kept_and_the_others_are_counted(width, height, side, stride, least):
    mask = disc_mask(width, height)
    grid = tissue_grid(mask, side=side, stride=stride, min_tissue=least)
    n_rows, n_columns = grid.shape
    assert len(grid) + sum(grid.left_out.values()) == n_rows * n_columns
    corners = grid.centers - side / 2
    assert (corners >= -1e-6).all()
    assert (corners + side <= np.array([width, height]) + 1e-6).all()
    np.testing.assert_allclose(grid.tissue_fraction, mask.fractions(corners, side), atol=1e-6)
    assert (grid.tissue_fraction >= least - 1e-6).all()
    assert (grid.tissue_fraction > 0).all()
    order = grid.rows.astype(int) * n_columns + grid.columns
    assert (np.diff(order) > 0).all()  # row by row, none twice
    # another row or column would not fit, and the margins are alike
    for n, length, start in ((n_columns, width, grid.origin[0]), (n_rows, height, grid.origin[1])):
        assert (n * stride + side) > length - 1e-3
        assert start - side / 2 == pytest.approx(length - (start + (n - 1) * stride) - side / 2, abs=1e-6)


def test_squares_side_by_side_tile_the_image():
    grid = tissue_grid(TissueMask(np.ones((10, 10), dtype=bool), 400, 300), side=100.0, stride=100.0, min_tissue=1.0)
    assert (grid.shape, len(grid)) == ((3, 4), 12)
    np.testing.assert_array_equal(grid.centers[:5], [[50, 50], [150, 50], [250, 50], [350, 50], [50, 150]])


def test_what_is_impossible_is_refused():
    mask = disc_mask(400, 300)
    with pytest.raises(ConfigError, match="stride of 0"):
        tissue_grid(mask, side=50.0, stride=0.0, min_tissue=0.5)
    with pytest.raises(ConfigError, match=r"share of tissue is 1\.5"):
        tissue_grid(mask, side=50.0, stride=50.0, min_tissue=1.5)
    with pytest.raises(DataError, match="400 x 300 px, but one field of view"):
        tissue_grid(mask, side=301.0, stride=50.0, min_tissue=0.5)
    with pytest.raises(DataError, match="no tissue was found"):
        tissue_grid(TissueMask(np.zeros((5, 5), dtype=bool), 400, 300), side=50.0, stride=50.0, min_tissue=0.0)
    with pytest.raises(DataError, match="none of the 1 x 1 fields of view holds 100% tissue"):
        tissue_grid(mask, side=300.0, stride=300.0, min_tissue=1.0)
