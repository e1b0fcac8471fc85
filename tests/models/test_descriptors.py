"""Descriptors: those of color are the color ridge's, none depends on how a patch is turned."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.errors import ModelError
from stexpr.models.augment import N_SYMMETRIES, apply_symmetries
from stexpr.models.baselines import color_features
from stexpr.models.descriptors import Descriptors

RADII = (2, 4, 8, 16, 64)


def patches(n: int = 3, side: int = 32, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("side", [32, 45, 112])
def test_colors_are_those_of_the_color_ridge(side):
    own = Descriptors(side, RADII)
    drawn = patches(side=side)
    expected = color_features(drawn.permute(0, 2, 3, 1).numpy(), own.radii_px)
    found = own(drawn)["color"].numpy()
    assert found.shape == (3, own.width("color"))
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize("side", [32, 48, 112])
def test_turning_and_flipping_change_nothing(side):
    own, drawn = Descriptors(side, RADII), patches(side=side)
    for which in range(N_SYMMETRIES):
        turned = own(apply_symmetries(drawn, torch.full((3,), which)))
        for group, values in own(drawn).items():
            np.testing.assert_allclose(turned[group], values, rtol=1e-4, atol=1e-4)


def test_a_patch_is_described_alike_in_any_company():
    own, drawn = Descriptors(32, RADII), patches(5)
    whole = own(drawn)
    for group in whole:
        np.testing.assert_allclose(own(drawn[2:3])[group][0], whole[group][2], rtol=1e-5, atol=1e-5)


def test_texture_is_detail_and_where_it_is():
    own = Descriptors(64, (8, 16, 32))
    flat = torch.full((1, 3, 64, 64), 90, dtype=torch.uint8)
    found = own(flat)["texture"]
    assert found.shape == (1, own.width("texture"))
    assert found.abs().max() < 1e-6
    fine, coarse = flat.clone(), flat.clone()
    fine[..., 28:36, 28:36] += (120 * (torch.arange(64).view(1, 1, 8, 8) // 8 % 2 == torch.arange(8) % 2)).to(torch.uint8)
    coarse[..., 28:36, 28:36] += 120
    bands = [own(image)["texture"].view(3, 5, 4).abs() for image in (fine, coarse)]  # ring, band, strength
    assert bands[0][0, 0].max() > bands[1][0, 0].max()  # a checkerboard is in the finest band
    assert bands[1][0, 2].max() > bands[0][0, 2].max()  # a square in the coarser ones
    assert bands[0][2, 0].max() < 1e-6  # neither is in the outermost ring
    assert (bands[1][0] > 0).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**16), st.integers(16, 70))
def test_every_window_gives_finite_numbers(seed, side):
    own = Descriptors(side, RADII)
    found = own(patches(2, side, seed))
    assert all(torch.isfinite(values).all() and values.dtype == torch.float32 for values in found.values())
    assert {group: values.shape[1] for group, values in found.items()} == {g: own.width(g) for g in ("color", "texture")}


def test_a_radius_named_twice_counts_once():
    assert Descriptors(32, (8, 4, 8)).radii_px == Descriptors(32, (4, 8)).radii_px == (4, 8)
    assert torch.isfinite(Descriptors(32, (8, 4, 8))(patches())["texture"]).all()


def test_another_size_is_refused():
    with pytest.raises(ModelError, match=r"descriptors of 32 px got patches of \(48, 48\) px"):
        Descriptors(32, RADII)(patches(side=48))
    with pytest.raises(ModelError, match="no disc of radius 64 px fits a window of 32 px"):
        Descriptors(32, (64,))
