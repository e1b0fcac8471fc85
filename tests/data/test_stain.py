import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.data.stain import (
    STANDARD,
    ChannelProfile,
    MacenkoProfile,
    ReinhardProfile,
    fit_channels,
    fit_stain,
    profile_of,
    recolored,
    sampled,
    stain_transform,
    thinned,
)
from stexpr.errors import DataError


def stained(seed: int, size: int = 96, strength: float = 1.0) -> np.ndarray:
    """H&E by the law of Beer and Lambert: two stains of varying concentration, and a little noise."""
    rng = np.random.default_rng(seed)
    stains = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    amount = rng.gamma(2.0, 0.35 * strength, (size, size, 2))
    light = 240 * np.exp(-(amount @ stains + 0.15)) + rng.normal(0, 1, (size, size, 3))
    return np.clip(light, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("kind", ["macenko", "reinhard"])
def test_a_section_taken_as_one_image_comes_out_as_torchstain_would_have_it(kind):
    from torchstain.numpy.normalizers import NumpyMacenkoNormalizer, NumpyReinhardNormalizer

    source, target = stained(0, strength=0.6), stained(1)
    ours = stain_transform(fit_stain(kind, source.reshape(-1, 3)), fit_stain(kind, target.reshape(-1, 3)))(source)
    if kind == "macenko":
        theirs = NumpyMacenkoNormalizer()
        theirs.fit(target)
        expected = theirs.normalize(source)[0]
    else:
        theirs = NumpyReinhardNormalizer()
        theirs.fit(target)
        expected = theirs.normalize(source)
    difference = np.abs(ours.astype(int) - expected.astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


@pytest.mark.parametrize("kind", ["macenko", "reinhard"])
def test_colors_come_near_the_reference(kind):
    pale, reference = stained(0, strength=0.4), stained(1)
    profiles = [fit_stain(kind, image.reshape(-1, 3)) for image in (pale, reference)]
    moved = stain_transform(*profiles)(pale)
    before = np.abs(pale.mean((0, 1)) - reference.mean((0, 1))).max()
    after = np.abs(moved.mean((0, 1)) - reference.mean((0, 1))).max()
    assert before > 20
    assert after < 0.35 * before


def test_patches_of_one_section_keep_their_difference():
    image = stained(0)
    profile = fit_stain("macenko", image.reshape(-1, 3))
    transform = stain_transform(profile, fit_stain("macenko", stained(1).reshape(-1, 3)))
    pale, dark = np.full((8, 8, 3), (230, 200, 220), np.uint8), np.full((8, 8, 3), (120, 60, 140), np.uint8)
    assert transform(pale).mean() - transform(dark).mean() > 60


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_transform_acts_pixel_by_pixel(seed):
    rng = np.random.default_rng(seed)
    patch = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    profile = MacenkoProfile(np.array([[0.56, 0.22], [0.72, 0.80], [0.41, 0.56]]), np.array([1.9, 1.0]))
    other = ReinhardProfile(np.array([60.0, 20, -10]), np.array([12.0, 6, 5]))
    for transform in (profile.to(profile), other.to(ReinhardProfile(other.mean + 3, other.sd * 1.2))):
        turned = transform(np.ascontiguousarray(np.rot90(patch)))
        np.testing.assert_array_equal(turned, np.rot90(transform(patch)))


def test_reinhard_to_itself_changes_nothing():
    image = stained(3)
    profile = fit_stain("reinhard", image.reshape(-1, 3))
    same = stain_transform(profile, profile)(image)
    assert np.abs(same.astype(int) - image.astype(int)).max() <= 1


def test_a_profile_describes_itself_as_json():
    import json

    pixels = stained(0).reshape(-1, 3)
    for kind in ("macenko", "reinhard"):
        assert json.loads(json.dumps(fit_stain(kind, pixels).describe()))["kind"] == kind


@pytest.mark.parametrize(
    ("kind", "pixels", "message"),
    [
        ("macenko", np.zeros((10, 3), np.uint8), "10 tissue pixels, it needs 1000"),
        ("macenko", np.full((5000, 3), 250, np.uint8), "0 stained pixels"),
        ("macenko", np.full((5000, 3), (120, 60, 140), np.uint8), "no two stains"),
        ("reinhard", np.full((5000, 3), (120, 60, 140), np.uint8), "one color only"),
    ],
)
def test_what_cannot_be_fitted_is_refused(kind, pixels, message):
    with pytest.raises(DataError, match=message):
        fit_stain(kind, pixels)


def test_kinds_do_not_mix():
    pixels = stained(0).reshape(-1, 3)
    with pytest.raises(DataError, match="fit both with one kind"):
        stain_transform(fit_stain("macenko", pixels), fit_stain("reinhard", pixels))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 999), st.floats(0.2, 1.2), st.integers(200, 250))
def test_standardized_tissue_has_the_standard_colors_whatever_the_stain_and_the_light(seed, strength, white):
    tissue = (stained(seed, strength=strength) * (white / 255)).astype(np.uint8)
    background = np.full((32, 96, 3), white, np.uint8)
    section = np.concatenate([tissue, background])[None]
    moved = recolored(section, fit_channels(section).table(STANDARD))
    pixels = section.reshape(-1, 3)
    light = np.maximum(np.percentile(pixels, 98, axis=0), 200)
    dark = (pixels < 0.85 * light).any(axis=1)
    own = moved.reshape(-1, 3)[dark]
    np.testing.assert_allclose(own.mean(axis=0), STANDARD.mean, atol=3)  # values beyond 0 and 255 are cut off
    np.testing.assert_allclose(own.std(axis=0), STANDARD.sd, atol=4)


def test_a_table_is_the_line_through_mean_and_spread_rounded_and_cut_off():
    own = ChannelProfile(np.array([100.0, 120.0, 140.0]), np.array([10.0, 20.0, 30.0]))
    table = own.table(STANDARD)
    for channel in range(3):
        expected = (np.arange(256) - own.mean[channel]) / own.sd[channel] * STANDARD.sd[channel] + STANDARD.mean[channel]
        np.testing.assert_array_equal(table[:, channel], np.clip(np.round(expected), 0, 255))
    patch = stained(3, size=16)
    np.testing.assert_array_equal(own.to(STANDARD)(patch), recolored(patch[None], table)[0])
    np.testing.assert_array_equal(recolored(patch, STANDARD.table(STANDARD)), patch)
    assert profile_of(STANDARD.describe()).describe() == STANDARD.describe()
    with pytest.raises(DataError, match="fit both with one kind"):
        stain_transform(own, ReinhardProfile(own.mean, own.sd))


def test_what_cannot_be_standardized_is_refused():
    with pytest.raises(DataError, match="0 tissue pixels"):
        fit_channels(np.full((2, 40, 40, 3), 240, np.uint8))
    one_color = np.full((2, 40, 40, 3), 240, np.uint8)
    one_color[0] = 90
    with pytest.raises(DataError, match="one color only"):
        fit_channels(one_color)


def test_patches_to_fit_on_are_spread_evenly_and_pixels_thinned():
    assert sampled(3) == [0, 1, 2]
    some = sampled(1000)
    assert (len(some), some[0], some[-1]) == (64, 0, 999)
    assert len(thinned(np.zeros((2_500_000, 3), np.uint8))) == 833_334
    assert len(thinned(np.zeros((10, 3), np.uint8))) == 10
