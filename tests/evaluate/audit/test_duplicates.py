import itertools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st
from planted_sections import N_GENES, Raw
from scipy.ndimage import gaussian_filter
from skimage.transform import downscale_local_mean

from stexpr.data.store import PreparedCohort
from stexpr.evaluate.audit.content import alike_expression, identical_counts, spot_keys
from stexpr.evaluate.audit.duplicates import Thumbnails, duplicate_patches, perceptual_bits, textured, thumbnails
from stexpr.evaluate.audit.identity import SectionColors, section_identity


def tissue(n: int, seed: int, side: int = 64) -> np.ndarray:
    rng = np.random.default_rng(seed)
    blobs = gaussian_filter(rng.normal(size=(n, side, side, 3)), (0, 3, 3, 0)) * 250
    return np.clip(130 + blobs + rng.normal(0, 5, blobs.shape), 0, 255).astype(np.uint8)


@given(rows=st.lists(st.lists(st.integers(0, 3), min_size=3, max_size=3), min_size=1, max_size=12))
def test_spots_have_one_key_exactly_if_their_counts_agree(rows: list[list[int]]):
    keys = spot_keys(sp.csr_matrix(np.array(rows, dtype=np.float32)))
    for i, j in itertools.combinations(range(len(rows)), 2):
        assert (keys[i] == keys[j]) == (rows[i] == rows[j])


def test_keys_ignore_how_counts_are_stored():
    plain = sp.csr_matrix(np.array([[0, 5, 7], [1, 0, 0]], dtype=np.float32))
    stored = sp.csr_matrix((np.array([7.0, 0.0, 5.0, 1.0]), np.array([2, 0, 1, 0]), np.array([0, 3, 4])), shape=(2, 3))
    assert (spot_keys(plain) == spot_keys(stored)).all()


def test_overlaps_come_in_the_order_of_sections_whatever_is_asked_first(raw: Callable[..., Raw]):
    planted = raw({"a1": "a", "b1": "b", "c1": "c"})
    donor = planted.counts("a1")
    planted.change_counts("b1", {2: donor[4], 3: donor[4]})
    planted.change_counts("c1", {4: donor[4], 9: donor[0]})
    cohort = planted.prepared()
    found = identical_counts(cohort, ("a1", "b1", "c1"))
    assert [(one.first, one.second, one.n, one.same_barcode) for one in found] == [
        ("a1", "b1", 1, 0),
        ("a1", "c1", 2, 1),
        ("b1", "b1", 1, 0),
        ("b1", "c1", 1, 0),
    ]
    assert found[1].example == ("0x0", "1x0")
    again = identical_counts(cohort, ("c1", "b1", "a1"))
    assert {frozenset((one.first, one.second)): one.n for one in again} == {
        frozenset((one.first, one.second)): one.n for one in found
    }


def test_sections_of_two_cell_types_are_alike_and_no_copies(raw: Callable[..., Raw]):
    """Deep counts with little noise: spots correlate above 0.9 with every spot of their type."""
    planted = raw({"a1": "a", "b1": "b"})
    rng = np.random.default_rng(0)
    kinds = rng.uniform(100, 2000, size=(2, N_GENES))
    for section in ("a1", "b1"):
        counts = rng.poisson(kinds[np.arange(81) % 2])
        planted.change_counts(section, dict(enumerate(counts)))
    cohort = planted.prepared()
    assert alike_expression(cohort, ("a1", "b1")) == []
    planted.change_counts("b1", {7: planted.counts("a1")[3]})
    (overlap,) = alike_expression(planted.prepared(), ("a1", "b1"))
    assert (overlap.n, overlap.example) == (1, ("0x3", "0x7"))


@pytest.mark.parametrize("side", [32, 64, 96])
def test_thumbnails_average_as_scikit_image_does(side: int):
    patches = tissue(3, 0, side)
    gray = patches @ np.array([0.299, 0.587, 0.114])
    expected = downscale_local_mean(gray, (1, side // 32, side // 32))
    np.testing.assert_allclose(thumbnails(patches), expected, atol=1e-3)


def test_thumbnails_of_any_size_keep_the_mean():
    patches = tissue(2, 1, 75)
    gray = patches @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(thumbnails(patches).mean(axis=(1, 2)), gray.mean(axis=(1, 2)), rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(gain=st.floats(0.3, 3), offset=st.floats(-100, 100))
def test_hashes_ignore_brightness_and_contrast(gain: float, offset: float):
    images = thumbnails(tissue(4, 2))
    changed = (images * np.float32(gain) + np.float32(offset)).astype(np.float32)
    differ = (99 - (perceptual_bits(images) * perceptual_bits(changed)).sum(axis=1)) / 2
    assert differ.max() <= 1  # a frequency of next to nothing may change its sign by rounding
    assert np.abs(perceptual_bits(images[:1]) @ perceptual_bits(images[1:]).T).max() < 60


def test_blank_patches_are_told_from_tissue():
    rng = np.random.default_rng(0)
    blank = np.clip(240 + rng.normal(0, 3, (5, 64, 64, 3)), 0, 255).astype(np.uint8)  # a scanner's noise
    shaded = np.broadcast_to(np.linspace(200, 240, 64).astype(np.uint8)[:, None, None], (2, 64, 64, 3))
    assert not textured(thumbnails(blank)).any()
    assert not textured(thumbnails(np.ascontiguousarray(shaded))).any()
    assert textured(thumbnails(tissue(5, 3))).all()


def test_all_orientations_are_searched_and_only_across_sections(clean: PreparedCohort):
    images = thumbnails(tissue(81, 4))
    turned = images.copy()
    for i in range(8):
        own = np.rot90(images[i], i % 4)
        turned[i] = own[:, ::-1] if i >= 4 else own
    turned[8:] = thumbnails(tissue(73, 5))
    turned[20] = turned[21]  # twice in one section: windows may overlap there
    found, n_blank = duplicate_patches(clean, [Thumbnails("a1", images), Thumbnails("b1", turned)])
    assert n_blank == 0
    (overlap,) = found
    assert (overlap.first, overlap.second, overlap.n, overlap.same_barcode) == ("a1", "b1", 8, 8)
    assert duplicate_patches(clean, []) == ([], 0)


def colors(seed: int, shift: float, n: int = 100) -> SectionColors:
    """A square of spots whose color drifts over the section, and is shifted as a whole."""
    rng = np.random.default_rng(seed)
    row, column = np.divmod(np.arange(n), int(np.sqrt(n)))
    features = rng.normal(size=(n, 6)) + np.linspace(0, 1, n)[:, None] + shift
    return SectionColors(features.astype(np.float32), np.stack([column, row], axis=1) * 100.0)


def test_sections_are_told_apart_where_their_colors_differ():
    apart = section_identity({"s1": colors(0, 0), "s2": colors(1, 3), "s3": colors(2, 6)})
    assert apart is not None
    assert apart.accuracy > 0.95
    assert apart.p == 1 / 200
    assert apart.null == pytest.approx(1 / 3, abs=0.06)
    assert min(apart.recall.values()) > 0.9


def patchy(seed: int, side: int = 12) -> SectionColors:
    """Neighboring spots have like colors; sections differ by chance only."""
    rng = np.random.default_rng(seed)
    features = gaussian_filter(rng.normal(size=(side, side, 4)), (1, 1, 0))
    features = features / features.std() + rng.normal(0, 0.3, features.shape)
    row, column = np.divmod(np.arange(side**2), side)
    return SectionColors(features.reshape(-1, 4).astype(np.float32), np.stack([column, row], axis=1) * 100.0)


def test_sections_that_differ_by_their_patches_only_are_not_told_apart():
    """Exchanging single spots instead of blocks would find 10 of these 30 pairs of sections different at 5 %."""
    found = [section_identity({"s1": patchy(2 * i), "s2": patchy(2 * i + 1)}) for i in range(30)]
    p = np.array([one.p for one in found if one is not None])
    assert len(p) == 30
    assert np.mean([one.accuracy for one in found if one is not None]) == pytest.approx(0.5, abs=0.06)
    assert (p <= 0.05).sum() <= 6
    assert (p > 0.5).sum() >= 8


def test_small_sections_are_left_out():
    assert section_identity({"s1": colors(0, 0), "s2": colors(1, 3, n=9)}) is None
