"""Augmentation: the eight symmetries form a group, colors move as asked, one generator decides everything."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.color import rgb_from_hed

from stexpr.config import InputConfig
from stexpr.models.augment import HED, N_SYMMETRIES, _turned_at_once, apply_symmetries, augment, jitter_colors, scale_stains
from stexpr.types import SpotBatch

ASYMMETRIC = torch.arange(48, dtype=torch.uint8).reshape(1, 3, 4, 4)
ALL = torch.arange(N_SYMMETRIES)
STILL = InputConfig(symmetries=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tissue(n: int = 3, side: int = 8, seed: int = 0) -> torch.Tensor:
    """Patches mixed from hematoxylin and eosin, as pixels of H&E are."""
    amounts = torch.rand((n, 2, side, side), generator=generator(seed)) * 0.7 + 0.1
    stains = HED[:2] / HED[:2].norm(dim=1, keepdim=True)
    return (torch.exp(-torch.einsum("bshw,sc->bchw", amounts, stains)) * 255).round().to(torch.uint8)


def batch_of(patches: torch.Tensor) -> SpotBatch:
    n = len(patches)
    counts = torch.rand((n, 2), generator=generator(1))
    return SpotBatch(patches, counts, torch.zeros(n, 0), torch.ones(n))


def turned(index: int, patch: torch.Tensor = ASYMMETRIC) -> torch.Tensor:
    return apply_symmetries(patch, torch.tensor([index]))


def index_of(patch: torch.Tensor) -> int:
    return next(index for index in range(N_SYMMETRIES) if torch.equal(turned(index), patch))


def test_the_symmetries_are_the_eight_of_the_square() -> None:
    found = {tuple(turned(index).flatten().tolist()) for index in range(N_SYMMETRIES)}
    patch = ASYMMETRIC[0].numpy()
    rotations = [np.rot90(patch, k, axes=(1, 2)) for k in range(4)]
    expected = {tuple(np.ravel(side).tolist()) for image in rotations for side in (image, image[:, :, ::-1])}
    assert len(expected) == N_SYMMETRIES
    assert found == expected


@pytest.mark.parametrize("last", [False, True])
def test_one_by_one_and_all_at_once_are_the_same(last: bool) -> None:
    patches = torch.randint(0, 256, (16, 3, 9, 9), dtype=torch.uint8, generator=generator())
    patches = patches.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    which = torch.arange(16) % N_SYMMETRIES
    assert torch.equal(apply_symmetries(patches, which), _turned_at_once(patches, which))


def test_zero_is_the_identity() -> None:
    assert torch.equal(turned(0), ASYMMETRIC)


def test_the_symmetries_are_closed_and_have_inverses() -> None:
    table = [[index_of(turned(b, turned(a))) for b in range(N_SYMMETRIES)] for a in range(N_SYMMETRIES)]
    assert all(sorted(row) == list(range(N_SYMMETRIES)) for row in table)  # each row has the identity: an inverse
    assert all(sorted(column) == list(range(N_SYMMETRIES)) for column in zip(*table, strict=True))
    for a, b, c in itertools.product(range(N_SYMMETRIES), repeat=3):
        assert table[table[a][b]][c] == table[a][table[b][c]]


def test_each_patch_gets_its_own_symmetry() -> None:
    patches = ASYMMETRIC.expand(N_SYMMETRIES, -1, -1, -1)
    assert torch.equal(apply_symmetries(patches, ALL), torch.cat([turned(index) for index in range(N_SYMMETRIES)]))


def test_augmentation_uses_all_symmetries_and_leaves_the_counts() -> None:
    batch = batch_of(ASYMMETRIC.repeat(200, 1, 1, 1))
    changed = augment(InputConfig(), batch, generator=generator())
    assert {index_of(patch[None]) for patch in changed.patches} == set(range(N_SYMMETRIES))
    assert changed.counts_main is batch.counts_main
    assert changed.library is batch.library
    assert torch.equal(batch.patches, ASYMMETRIC.repeat(200, 1, 1, 1))  # not in place


LOUD = InputConfig(brightness=0.3, contrast=0.3, saturation=0.3, stain_jitter=0.2)


def test_only_the_generator_decides() -> None:
    batch = batch_of(tissue(6))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = augment(LOUD, batch, generator=generator(4)).patches
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(augment(LOUD, batch, generator=generator(4)).patches, first)
    assert not torch.equal(augment(LOUD, batch, generator=generator(5)).patches, first)


def test_nothing_asked_changes_nothing_and_draws_nothing() -> None:
    batch, source = batch_of(tissue()), generator()
    before = source.get_state()
    assert torch.equal(augment(STILL, batch, generator=source).patches, batch.patches)
    assert torch.equal(source.get_state(), before)


def test_jitter_of_width_zero_is_the_identity() -> None:
    every_value = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).repeat(1, 3, 1, 1)
    assert torch.equal(jitter_colors(every_value, STILL, generator=generator()), every_value)


@pytest.mark.parametrize("field", ["brightness", "contrast", "saturation", "stain_jitter"])
def test_each_jitter_changes_each_patch_in_its_own_way(field: str) -> None:
    patches = tissue(1).repeat(6, 1, 1, 1)
    config = InputConfig(symmetries=False, **{field: 0.4})
    changed = augment(config, batch_of(patches), generator=generator()).patches
    assert changed.dtype == torch.uint8
    assert changed.shape == patches.shape
    assert not torch.equal(changed, patches)
    assert len({tuple(patch.flatten().tolist()) for patch in changed}) == 6


def test_brightness_multiplies_within_its_width() -> None:
    patches = torch.full((500, 3, 2, 2), 100, dtype=torch.uint8)
    changed = jitter_colors(patches, InputConfig(brightness=0.2), generator=generator())
    assert changed.float().std(dim=(1, 2, 3)).max() == 0
    assert (changed.min().item(), changed.max().item()) == (80, 120)


def test_contrast_keeps_the_mean_and_saturation_the_gray() -> None:
    patches = tissue(20)
    contrasted = jitter_colors(patches, InputConfig(contrast=0.3), generator=generator()).float()
    assert (contrasted.mean(dim=(1, 2, 3)) - patches.float().mean(dim=(1, 2, 3))).abs().max() < 1
    gray = torch.full((4, 3, 3, 3), 90, dtype=torch.uint8)
    assert torch.equal(jitter_colors(gray, InputConfig(saturation=1.0), generator=generator()), gray)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.floats(0, 1), st.floats(0, 1))
def test_jittered_patches_stay_in_range(seed: int, width: float, stain: float) -> None:
    patches = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8, generator=generator(seed))
    config = InputConfig(brightness=width, contrast=width, saturation=width, stain_jitter=stain)
    changed = jitter_colors(patches, config, generator=generator(seed))
    assert changed.dtype == torch.uint8
    assert changed.shape == patches.shape
    # a wrapped-around value would turn a channel that is white in input and factor into black
    white = torch.full((2, 3, 4, 4), 255, dtype=torch.uint8)
    brightened = jitter_colors(white, InputConfig(brightness=0.5), generator=generator(seed))
    assert brightened.min() >= 127


def test_the_stain_matrix_is_skimages() -> None:
    np.testing.assert_allclose(HED.numpy(), rgb_from_hed, atol=1e-7)


def test_stain_factors_of_one_change_nothing() -> None:
    images = torch.rand((3, 3, 5, 5), generator=generator())
    assert torch.allclose(scale_stains(images, torch.ones(3, 2)), images, atol=1e-6)


@pytest.mark.parametrize("factors", [[1.5, 1.0], [1.0, 1.5], [1.4, 1.4]])
def test_more_stain_darkens_tissue_and_less_lightens_it(factors: list[float]) -> None:
    images = tissue().float() / 255
    more = scale_stains(images, torch.tensor([factors]).expand(3, 2))
    less = scale_stains(images, 1 / torch.tensor([factors]).expand(3, 2))
    assert (more.mean(dim=(1, 2, 3)) < images.mean(dim=(1, 2, 3)) - 0.01).all()
    assert (less.mean(dim=(1, 2, 3)) > images.mean(dim=(1, 2, 3)) + 0.01).all()


def test_stains_scale_apart() -> None:
    stains = (HED / HED.norm(dim=1, keepdim=True)).double()
    amounts = torch.rand((2, 3, 4, 4), generator=generator(), dtype=torch.float64) * 0.5
    factors = torch.tensor([[1.3, 0.8], [0.7, 1.2]], dtype=torch.float64)
    images = torch.exp(-torch.einsum("bshw,sc->bchw", amounts, stains))
    wanted = amounts * torch.cat([factors, torch.ones(2, 1, dtype=torch.float64)], dim=1)[:, :, None, None]
    expected = torch.exp(-torch.einsum("bshw,sc->bchw", wanted, stains))
    assert torch.allclose(scale_stains(images, factors), expected, atol=1e-6)


def test_a_white_background_stays_white() -> None:
    white = torch.ones(2, 3, 4, 4)
    assert torch.equal(scale_stains(white, torch.tensor([[2.0, 0.5], [0.5, 3.0]])), white)
