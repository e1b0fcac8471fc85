"""Fields of view: what is cut, how it is reduced, and one backbone that sees several of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stexpr.errors import ConfigError, ModelError
from stexpr.models.augment import apply_symmetries
from stexpr.models.backbones import create_backbone
from stexpr.models.fields import cut_fields


def random_patches(n: int, side: int, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)  # channels last, as the dataset gives them


def bilinear(patches: torch.Tensor, side: int) -> torch.Tensor:
    images = patches.float() / 255
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(2, 5), st.integers(1, 7), st.booleans())
def test_a_whole_multiple_is_averaged_over_squares(input_px: int, ratio: int, margin: int, last: bool) -> None:
    side, start = input_px * ratio, margin // 2
    patches = random_patches(2, side + margin)
    found = cut_fields(patches if last else patches.contiguous(), (side, side + margin), input_px)[:2]
    field = patches[:, :, start : start + side, start : start + side].numpy().astype(np.float64)
    expected = field.reshape(2, 3, input_px, ratio, input_px, ratio).mean(axis=(3, 5)) / 255
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert found.dtype == torch.float32


def test_sums_do_not_overflow_at_the_largest_ratio() -> None:
    white = torch.full((1, 3, 2048, 2048), 255, dtype=torch.uint8)
    assert torch.equal(cut_fields(white, (16, 2048), 16), torch.ones(2, 3, 16, 16))


@pytest.mark.parametrize("which", range(8))
def test_averages_turn_and_flip_with_the_patch(which: int) -> None:
    patches, turn = random_patches(2, 32), torch.full((2,), which)
    turned = cut_fields(apply_symmetries(patches, turn), (8, 16, 32), 8)
    plain = cut_fields(patches, (8, 16, 32), 8)
    moved = plain.transpose(2, 3) if which & 4 else plain
    assert torch.equal(turned, moved.flip([axis for bit, axis in ((2, 2), (1, 3)) if which & bit]))


def test_what_is_no_whole_multiple_is_interpolated() -> None:
    patches = random_patches(2, 30)
    found = cut_fields(patches, (7, 12, 30), 8)
    for i, side in enumerate((7, 12, 30)):
        start = (30 - side) // 2
        expected = bilinear(patches[:, :, start : start + side, start : start + side], 8)
        np.testing.assert_allclose(found[2 * i : 2 * i + 2].numpy(), expected.numpy(), atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("window_px", "input_px"), [(32, 32), (20, 29), (64, 32)])
def test_one_field_is_resized_as_ever_to_the_bit(window_px: int, input_px: int) -> None:
    patches = random_patches(3, window_px)
    images = patches.float().contiguous(memory_format=torch.channels_last).div_(255)
    expected = (
        images
        if window_px == input_px
        else functional.interpolate(images, size=(input_px, input_px), mode="bilinear", antialias=True, align_corners=False)
    )
    assert torch.equal(cut_fields(patches, (window_px,), input_px), expected)


@pytest.mark.parametrize("name", ["tiny", "mobilenetv3_small_050", "test_vit", "inception_v3"])
def test_features_of_several_fields_are_those_of_each_one_after_the_other(name: str) -> None:
    several = create_backbone(name, window_px=96, fields_px=(32, 96), seed=1).eval()
    one = create_backbone(name, window_px=32, seed=1).eval()  # the same weights: the smallest field decides the size
    assert (several.input_px, several.window_px, several.fields_px) == (one.input_px, 96, (32, 96))
    assert several.n_features == 2 * one.n_features
    assert all(torch.equal(a, b) for a, b in zip(several.state_dict().values(), one.state_dict().values(), strict=True))
    patches = random_patches(3, 96)
    with torch.inference_mode():
        images = several.preprocess(patches)
        assert images.shape == (6, 3, one.input_px, one.input_px)
        features = several(images)
        assert features.shape == (3, several.n_features)
        assert torch.equal(images[:3], one.preprocess(patches[:, :, 32:64, 32:64]))
        for part, own in zip(features.split(one.n_features, dim=1), images.split(3), strict=True):
            np.testing.assert_allclose(part.numpy(), one(own).numpy(), rtol=1e-4, atol=1e-4 * float(part.abs().max()))


def test_each_field_matters_alone() -> None:
    backbone = create_backbone("tiny", window_px=32, fields_px=(16, 32)).eval()
    patches = random_patches(1, 32)
    rim = patches.clone()
    rim[:, :, :4] = 0
    with torch.inference_mode():
        before, after = (backbone(backbone.preprocess(part)) for part in (patches, rim))
    assert torch.equal(before[:, :192], after[:, :192])  # the smallest field does not reach there
    assert not torch.equal(before[:, 192:], after[:, 192:])


@pytest.mark.parametrize("fields_px", [(32, 16), (16, 16, 32), (16, 48), (16,), (0, 32), (-8, 32)])
def test_fields_that_do_not_ascend_to_the_window_are_refused(fields_px: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="do not ascend to the side of the window, 32 px"):
        create_backbone("tiny", window_px=32, fields_px=fields_px)


def test_patches_of_the_smallest_field_are_not_enough() -> None:
    backbone = create_backbone("tiny", window_px=32, fields_px=(16, 32))
    with pytest.raises(ModelError, match="built for patches of 32 px"):
        backbone.preprocess(random_patches(1, 16))
