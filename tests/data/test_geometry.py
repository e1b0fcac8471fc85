"""Where the spots of a section lie."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stexpr.data.geometry import neighborhood_mean, slabs, spatial_block


def lattice(side: int, pitch: float, section: str, *, hexagonal: bool = False) -> pd.DataFrame:
    row, column = np.divmod(np.arange(side * side), side)
    x = (column + 0.5 * (row % 2) * hexagonal) * pitch
    y = row * pitch * (np.sqrt(0.75) if hexagonal else 1)
    return pd.DataFrame({"section": section, "x_um": x, "y_um": y})


@pytest.mark.parametrize(("hexagonal", "around"), [(False, 8), (True, 6)])
def test_inner_spots_have_the_neighbors_of_their_lattice(hexagonal: bool, around: int) -> None:
    mean = neighborhood_mean(lattice(5, 200.0, "a", hexagonal=hexagonal))
    assert mean[12].nnz == around + 1
    np.testing.assert_allclose(mean.sum(axis=1), 1)
    np.testing.assert_allclose(mean[12].data, 1 / (around + 1))


@given(st.integers(0, 2**32 - 1))
def test_the_order_of_spots_does_not_matter_and_sections_stay_apart(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spots = pd.concat([lattice(4, 200.0, "a"), lattice(3, 100.0, "b")], ignore_index=True)
    values = rng.normal(size=len(spots))
    expected = neighborhood_mean(spots) @ values
    order = rng.permutation(len(spots))
    np.testing.assert_allclose(neighborhood_mean(spots.iloc[order]) @ values[order], expected[order])
    alone = neighborhood_mean(spots[spots["section"] == "b"]) @ values[16:]
    np.testing.assert_allclose(expected[16:], alone)


def test_a_lonely_spot_keeps_its_value() -> None:
    spots = pd.DataFrame({"section": ["a", "b", "b"], "x_um": [0.0, 0.0, 9.0], "y_um": 0.0})
    np.testing.assert_allclose((neighborhood_mean(spots) @ np.array([5.0, 1.0, 3.0])), [5.0, 2.0, 2.0])


@given(st.integers(4, 60), st.integers(1, 4), st.integers(0, 99))
def test_slabs_are_contiguous_and_of_nearly_equal_size(n: int, parts: int, seed: int) -> None:
    xy = np.random.default_rng(seed).normal(size=(n, 2)) * (5, 1)
    number = slabs(xy, parts)
    sizes = np.bincount(number)
    assert len(sizes) == parts
    assert np.ptp(sizes) <= 1
    first = spatial_block(xy, sizes[0] / n)
    np.testing.assert_array_equal(number == 0, first)  # along the same axis
