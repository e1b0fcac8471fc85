"""Foreign patches lie far from the training patches; patches of the same kind do not."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from sklearn.metrics import roc_auc_score
from torch.nn import functional

from stexpr.errors import ModelError
from stexpr.models.export.applicability import Applicability, Views, appearance, fit_applicability


def tissue(n: int, seed: int, *, color=(200, 120, 170), grain: float = 12.0) -> torch.Tensor:
    """Patches of one color with smooth noise of one grain, each patch a little lighter or darker."""
    rng = np.random.default_rng(seed)
    shade = rng.normal(0, 8, (n, 1, 1, 1))
    noise = rng.normal(0, grain, (n, 3, 32, 32))
    pixels = np.array(color)[None, :, None, None] + shade + (noise + np.roll(noise, 1, 3) + np.roll(noise, 1, 2)) / 2
    return torch.from_numpy(pixels.clip(0, 255).astype(np.uint8))


def views(patches: torch.Tensor, model) -> Views:
    with torch.inference_mode():
        return Views(model.features(patches), appearance(patches))


@pytest.fixture(scope="module")
def model(make_model):
    return make_model().eval()


@pytest.fixture(scope="module")
def reference(model):
    sections = np.repeat(["a", "b"], 60)
    return fit_applicability(views(tissue(120, 0), model), sections, views(tissue(300, 1), model))


def test_the_threshold_keeps_99_percent_of_the_same_tissue(model, reference):
    again = reference.novelty(views(tissue(300, 1), model))
    assert float((again < 1).float().mean()) == pytest.approx(0.99, abs=0.005)
    assert float((reference.novelty(views(tissue(300, 2), model)) < 1).float().mean()) > 0.95


@pytest.mark.parametrize(
    "foreign",
    [{"color": (170, 120, 200)}, {"grain": 3.0}, {"grain": 40.0}, {"color": (240, 240, 240), "grain": 1.0}],
    ids=["another hue", "blurred", "sharper", "background"],
)
def test_foreign_tissue_is_told_though_the_network_never_learned_to(model, reference, foreign):
    known, other = (reference.novelty(views(patches, model)) for patches in (tissue(200, 3), tissue(200, 4, **foreign)))
    truth = [0] * 200 + [1] * 200
    assert roc_auc_score(truth, torch.cat([known, other])) > 0.9
    assert float((other > 1).float().mean()) > 0.8


def test_without_held_out_patches_sections_are_measured_against_each_other(model):
    patches = tissue(120, 0)
    shifted = patches.clone()
    shifted[60:] = tissue(60, 5, color=(190, 125, 175))
    seen, sections = views(shifted, model), np.repeat(["a", "b"], 60)
    unlike, mixed = fit_applicability(seen, sections), fit_applicability(seen, np.tile(["a", "b"], 60))
    assert unlike.appearance.threshold > mixed.appearance.threshold
    alone = fit_applicability(views(patches, model), np.repeat(["a"], 120))
    assert float((alone.novelty(views(tissue(200, 6), model)) < 1).float().mean()) > 0.8


@given(seed=st.integers(0, 2**16), turns=st.integers(0, 3), flip=st.booleans())
@settings(max_examples=20, deadline=None)
def test_appearance_is_the_same_for_all_symmetries(seed, turns, flip):
    patches = tissue(3, seed)
    turned = patches.rot90(turns, (2, 3))
    turned = turned.flip(3) if flip else turned
    torch.testing.assert_close(appearance(turned.contiguous()), appearance(patches), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("side", [16, 27, 30, 32])
def test_contrasts_are_those_of_averages_over_squares(side):
    patches = tissue(3, 1)[..., :side, :side]
    images = patches.float() / 255
    coarse = [functional.avg_pool2d(images, scale) for scale in (1, 2, 4, 8)]
    expected = [(x.diff(dim=2).abs().mean(dim=(2, 3)) + x.diff(dim=3).abs().mean(dim=(2, 3))) / 2 for x in coarse]
    torch.testing.assert_close(appearance(patches)[:, 9:], torch.cat(expected, dim=1), atol=1e-6, rtol=0)


def test_small_patches_have_fewer_scales():
    assert appearance(tissue(2, 0)[..., :4, :4]).shape == (2, 3 + 3 + 3 + 2 * 3)
    assert appearance(tissue(2, 0)).shape == (2, 3 + 3 + 3 + 4 * 3)


def test_appearance_depends_neither_on_the_others_nor_on_the_layout() -> None:
    patches = tissue(7, 0)
    whole = appearance(patches)
    assert torch.equal(whole, torch.cat([appearance(patches[i : i + 1]) for i in range(7)]))
    assert torch.equal(whole, appearance(patches.contiguous(memory_format=torch.channels_last)))
    assert appearance(patches[:0]).shape == (0, whole.shape[1])


def test_a_reference_comes_back_as_it_was(model, reference):
    patches = views(tissue(20, 7), model)
    back = Applicability.from_bytes(reference.to_bytes(), model.backbone.n_features)
    assert back.novelty(patches).equal(reference.novelty(patches))


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("features.bank"),
        lambda tensors: tensors.update({"more": torch.zeros(1)}),
        lambda tensors: tensors.update({"features.threshold": torch.tensor(0.0)}),
        lambda tensors: tensors.update({"features.mean": torch.full_like(tensors["features.mean"], torch.nan)}),
        lambda tensors: tensors.update({"appearance.bank": tensors["appearance.bank"][:, 1:].contiguous()}),
        lambda tensors: tensors.update({"features.mean": torch.zeros(7)}),
    ],
)
def test_a_broken_reference_is_refused(model, reference, change):
    tensors = load(reference.to_bytes())
    change(tensors)
    with pytest.raises(ModelError, match="applicability reference cannot be read"):
        Applicability.from_bytes(save(tensors), model.backbone.n_features)
    with pytest.raises(ModelError, match="applicability reference cannot be read"):
        Applicability.from_bytes(b"no tensors", model.backbone.n_features)


def test_too_few_or_infinite_patches_are_refused(model):
    few = views(tissue(4, 0), model)
    with pytest.raises(ModelError, match="needs more than 5 patches"):
        fit_applicability(few, np.array(["a"] * 4))
    broken = views(tissue(40, 0), model)._replace(appearance=torch.full((40, 21), torch.inf))
    with pytest.raises(ModelError, match="finite"):
        fit_applicability(broken, np.array(["a"] * 40))
