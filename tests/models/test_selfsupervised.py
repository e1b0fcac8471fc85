import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.config import PretrainConfig
from stexpr.models.backbones import create_backbone
from stexpr.models.selfsupervised import SimSiam, ViewBatch, crop_windows, make_views, resize_crops
from stexpr.types import SpotBatch

PLAIN = PretrainConfig(crop=1, brightness=0, contrast=0, saturation=0, stain_jitter=0)


def random_patches(n: int = 6, side: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.randint(256, (n, 3, side, side), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def spots(patches: torch.Tensor) -> SpotBatch:
    return SpotBatch(patches, torch.zeros(len(patches), 2), torch.zeros(len(patches), 0), torch.ones(len(patches)))


def views(config: PretrainConfig, patches: torch.Tensor, window_px: int = 16, seed: int = 0) -> ViewBatch:
    return make_views(config, window_px, spots(patches), torch.Generator().manual_seed(seed))


def test_windows_are_where_their_corners_say():
    patches = random_patches()
    corners = torch.tensor([[0, 0], [16, 16], [3, 9], [16, 0], [7, 7], [1, 2]])
    windows = crop_windows(patches, corners, 16)
    for patch, (top, left), window in zip(patches, corners.tolist(), windows, strict=True):
        assert torch.equal(window, patch[:, top : top + 16, left : left + 16])


def test_the_whole_patch_stays_as_it_is():
    patches = random_patches()
    assert torch.equal(resize_crops(patches, torch.ones(6), torch.rand(6, 2)), patches)


@settings(deadline=None, max_examples=20)
@given(
    side=st.floats(0.3, 1),
    across=st.floats(0, 1),
    down=st.floats(0, 1),
)
def test_a_crop_of_a_ramp_is_the_ramp_of_its_place(side: float, across: float, down: float):
    """Bilinear interpolation of what is linear is exact, so each pixel tells where it was taken from."""
    ramp = torch.arange(32).mul(4).to(torch.uint8)
    patches = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), ramp.expand(32, 32)])[None]
    part = resize_crops(patches, torch.tensor([side]), torch.tensor([[across, down]]))[0].double()
    for values, place in ((part[0, 5], across), (part[1, :, 5], down)):
        expected = ((torch.arange(32) + 0.5) * side + place * (1 - side) * 32 - 0.5).clamp(0, 31) * 4
        assert (values - expected).abs().max() < 0.52


def test_without_changes_both_views_are_symmetries_of_one_window():
    patches = random_patches(n=16)
    made = views(PLAIN, patches)
    for patch, first, second in zip(patches, made.first, made.second, strict=True):
        assert torch.equal(first.flatten(1).sort().values, second.flatten(1).sort().values)
        windows = patch.unfold(1, 16, 1).unfold(2, 16, 1).flatten(1, 2).flatten(2).sort().values  # (3, places, pixels)
        assert (windows == first.flatten(1).sort().values[:, None]).all(dim=(0, 2)).any()


def test_views_come_from_the_seed_alone_and_differ():
    patches = random_patches()
    one, again, other = (
        views(PretrainConfig(), patches),
        views(PretrainConfig(), patches),
        views(PretrainConfig(), patches, seed=1),
    )
    assert torch.equal(one.first, again.first)
    assert torch.equal(one.second, again.second)
    assert not torch.equal(one.first, other.first)
    assert not torch.equal(one.first, one.second)
    assert one.first.shape == (6, 3, 16, 16)
    assert len(one) == 6


def model() -> SimSiam:
    return SimSiam(create_backbone("tiny", window_px=16), seed=0)


def test_the_loss_is_that_of_the_paper():
    learner = model()
    made = views(PretrainConfig(), random_patches())
    loss = learner.loss(made)
    z = [learner.projector(learner.backbone(learner.backbone.preprocess(part))) for part in (made.first, made.second)]
    p = [learner.predictor(part) for part in z]

    def d(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return -((a / a.norm(dim=1, keepdim=True)) * (b / b.norm(dim=1, keepdim=True))).sum(dim=1).mean()

    assert loss.total.item() == pytest.approx((d(p[0], z[1]) / 2 + d(p[1], z[0]) / 2).item(), abs=1e-6)
    assert loss.denominator == 6
    unit = z[0] / z[0].norm(dim=1, keepdim=True)
    assert loss.parts["spread"].item() == pytest.approx((unit.std(dim=0).mean() * 512**0.5).item(), abs=1e-6)


def test_no_gradient_goes_through_the_target():
    """Of alike predictions of everything, the loss would change the target alone; so no weight but theirs moves."""
    learner = model()
    torch.nn.init.zeros_(learner.predictor[-1].weight)
    learner.loss(views(PretrainConfig(), random_patches())).total.backward()
    assert all(not p.grad.any() for p in [*learner.backbone.parameters(), *learner.projector.parameters()])
    assert learner.predictor[-1].bias.grad.any()


def test_what_is_alike_has_no_spread():
    learner = model()
    assert learner.spread.isinf()
    patches = random_patches(n=1).expand(6, -1, -1, -1)
    made = ViewBatch(patches[:, :, :16, :16], patches[:, :, :16, :16])
    first = learner.loss(made).parts["spread"]
    assert first < 0.01
    assert learner.spread == first
    second = learner.loss(views(PLAIN, random_patches(n=64))).parts["spread"]
    assert second > 0.5
    assert learner.spread.item() == pytest.approx((0.9 * first + 0.1 * second).item(), abs=1e-6)


def test_weights_come_from_the_seed_and_the_global_state_stays():
    state = torch.random.get_rng_state()
    one, again = model().state_dict(), model().state_dict()
    other = SimSiam(create_backbone("tiny", window_px=16), seed=1).state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(one[key], again[key]) for key in one)
    assert not torch.equal(one["projector.0.weight"], other["projector.0.weight"])
    assert model().couples_examples
