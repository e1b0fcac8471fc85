"""Mixup: shares of a Beta distribution, patches and targets mixed alike, parts of a batch that keep their partners."""

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.config import AuxiliaryConfig, NetworkConfig
from stexpr.errors import ModelError
from stexpr.models.mixup import mix
from stexpr.models.objectives import LossKind, Objective, make_objective
from stexpr.models.spot import SpotRegressor, build_spot_regressor
from stexpr.panel import ExpressionTransform
from stexpr.types import SpotBatch

WINDOW, N_MAIN = 32, 4


def spots(n: int = 8, seed: int = 0, side: int = WINDOW) -> SpotBatch:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((n, 7), 4.0), generator=generator)
    patches = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=generator)
    return SpotBatch(patches, counts[:, :N_MAIN], counts[:, N_MAIN:], counts.sum(dim=1) + 9)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def objective(kind: LossKind, role: str, *, standardize: bool = True) -> Objective:
    train = spots(40, seed=9, side=2)
    counts = (train.counts_main if role == "main" else train.counts_auxiliary).numpy()
    library = train.library.numpy()
    return make_objective(kind, counts=counts, library=library, transform=ExpressionTransform(), standardize=standardize)


def regressor(kind: LossKind = "mse") -> SpotRegressor:
    return build_spot_regressor(
        NetworkConfig(backbone="tiny", auxiliary=AuxiliaryConfig(weight=0.5), loss=kind),
        window_px=WINDOW,
        main_objective=objective(kind, "main"),
        auxiliary_objective=objective(kind, "auxiliary", standardize=False),
        seed=0,
    )


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), n=st.integers(1, 9), alpha=st.floats(0.01, 4))
def test_patches_are_mixed_in_the_shares_of_the_targets(seed: int, n: int, alpha: float) -> None:
    batch = spots(n, seed % 1000, side=4)
    mixed = mix(batch, alpha, generator(seed))
    other = mixed.partners
    assert other is not None
    assert mixed.counts_main is batch.counts_main
    assert ((other.share >= 0) & (other.share <= 1)).all()
    assert mixed.patches.dtype == torch.uint8
    assert sorted(other.library.tolist()) == sorted(batch.library.tolist())  # every spot is somebody's partner
    for i in range(n):
        partners = [j for j in range(n) if torch.equal(other.counts_main[i], batch.counts_main[j])]
        own, share = batch.patches[i].double(), other.share[i].double()
        off = [((1 - share) * own + share * batch.patches[j] - mixed.patches[i]).abs().max().item() for j in partners]
        assert min(off) < 0.501


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_shares_are_those_of_a_beta_distribution(alpha: float) -> None:
    mixed = mix(spots(3000, side=1), alpha, generator())
    assert mixed.partners is not None
    assert scipy.stats.kstest(mixed.partners.share.numpy(), scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_the_seed_of_the_generator_alone_decides() -> None:
    source = generator(4)
    before = source.get_state()
    one, again, other = mix(spots(), 0.4, source), mix(spots(), 0.4, source), mix(spots(), 0.4, generator(5))
    assert torch.equal(source.get_state(), before)
    assert torch.equal(one.patches, again.patches)
    assert not torch.equal(one.patches, other.patches)


@pytest.mark.parametrize("kind", ["mse", "huber"])
def test_the_loss_is_that_of_mixed_standardized_targets(kind: LossKind) -> None:
    model = regressor(kind)
    batch = mix(spots(), 1.0, generator())
    other = batch.partners
    assert other is not None
    loss, output = model.loss(batch), model(batch.patches)
    share = other.share.numpy()[:, None].astype(float)
    for role, values, counts, partner in (
        ("main", output.main, batch.counts_main, other.counts_main),
        ("auxiliary", output.auxiliary, batch.counts_auxiliary, other.counts_auxiliary),
    ):
        of = getattr(model, f"{role}_objective")
        target = (1 - share) * of.target(counts, batch.library).numpy() + share * of.target(partner, other.library).numpy()
        off = np.abs(values.detach().numpy() - target)
        each = off**2 if kind == "mse" else np.where(off <= 1, off**2 / 2, off - 0.5)
        assert loss.parts[role].item() == pytest.approx(each.mean(), rel=1e-4)


def test_shares_of_zero_leave_the_loss() -> None:
    model, batch = regressor(), spots()
    mixed = mix(batch, 0.4, generator())
    assert mixed.partners is not None
    mixed.partners.share.zero_()
    unmixed = SpotBatch(batch.patches, batch.counts_main, batch.counts_auxiliary, batch.library, mixed.partners)
    assert torch.equal(model.loss(unmixed).total, model.loss(batch).total)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_parts_of_a_batch_keep_their_partners(n: int) -> None:
    model = regressor()
    batch = mix(spots(7), 1.0, generator())
    parts = batch.split(n)
    assert sum(map(len, parts)) == 7
    mean = sum(model.loss(part).total * len(part) for part in parts) / 7
    assert torch.allclose(mean, model.loss(batch).total, rtol=1e-5)


@pytest.mark.parametrize("kind", ["mse_pearson", "negative_binomial"])
def test_other_losses_have_nothing_to_mix(kind: LossKind) -> None:
    with pytest.raises(ModelError, match=f"the loss {kind} has no targets to mix spot by spot"):
        regressor(kind).loss(mix(spots(), 1.0, generator()))
