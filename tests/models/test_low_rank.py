"""The low-rank head: scikit-learn's components, scaled; a training that leaves them as they are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from stexpr.config import NetworkConfig
from stexpr.errors import ModelError
from stexpr.models.low_rank import LowRankHead, principal_components
from stexpr.models.objectives import StandardizedRegression, make_objective
from stexpr.models.spot import SpotRegressor, build_spot_regressor
from stexpr.panel import ExpressionTransform
from stexpr.types import SpotBatch

N_GENES, WINDOW = 6, 32


def targets(n: int = 50, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)) @ rng.normal(size=(2, N_GENES)) + 0.3 * rng.normal(size=(n, N_GENES))
    return torch.from_numpy(((values - values.mean(axis=0)) / values.std(axis=0)).astype(np.float32))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, N_GENES))
def test_components_are_scikit_learns_and_their_factors_have_an_sd_of_one(seed: int, rank: int) -> None:
    values = targets(seed=seed)
    found = principal_components(values, rank).numpy().astype(float)
    oracle = PCA(rank).fit(values.numpy().astype(float))
    lengths = np.linalg.norm(found, axis=1)
    np.testing.assert_allclose(lengths**2, oracle.explained_variance_ * (len(values) - 1) / len(values), rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(found / lengths[:, None] * oracle.components_, axis=1)), 1, atol=1e-3)
    assert (found[range(rank), np.abs(found).argmax(axis=1)] > 0).all()
    factors = values.numpy() @ (found / lengths[:, None] ** 2).T
    np.testing.assert_allclose(factors.std(axis=0), 1, rtol=1e-4)


def test_as_many_factors_as_genes_lose_nothing_and_a_constant_gene_is_none() -> None:
    values = targets()
    values[:, 3] = 0
    found = principal_components(values, N_GENES)
    lengths = found.square().sum(dim=1, keepdim=True)
    assert torch.allclose(values @ (found / lengths.clamp_min(1e-6)).T @ found, values, atol=1e-4)
    assert found[-1].abs().max() < 1e-3  # the sixth direction has no variance
    assert found[:, 3].abs().max() < 1e-6


@pytest.mark.parametrize("rank", [0, N_GENES + 1])
def test_more_factors_than_genes_are_refused(rank: int) -> None:
    with pytest.raises(ModelError, match=f"model.rank = {rank} is not between 1 and 6"):
        principal_components(targets(), rank)


def batch() -> SpotBatch:
    generator = torch.Generator().manual_seed(0)
    counts = torch.poisson(torch.full((12, N_GENES), 5.0), generator=generator)
    patches = torch.randint(0, 256, (12, 3, WINDOW, WINDOW), dtype=torch.uint8, generator=generator)
    return SpotBatch(patches, counts, torch.zeros(12, 0), counts.sum(dim=1) + 20)


def regressor(spots: SpotBatch, rank: int | None, n_components: int | None = None) -> SpotRegressor:
    counts, library = spots.counts_main, spots.library
    objective = make_objective("mse", counts=counts.numpy(), library=library.numpy(), transform=ExpressionTransform())
    assert isinstance(objective, StandardizedRegression)
    return build_spot_regressor(
        NetworkConfig(backbone="tiny", rank=rank, bias_init="training_mean"),
        window_px=WINDOW,
        main_objective=objective,
        auxiliary_objective=None,
        seed=0,
        components=principal_components(objective.target(counts, library), n_components) if n_components else None,
    )


def test_training_moves_the_factors_and_leaves_the_components() -> None:
    spots = batch()
    model = regressor(spots, 2, 2)
    head = model.main_head
    assert isinstance(head, LowRankHead)
    assert head.out_features == 2
    assert not head.bias.any()  # every prediction starts about the training mean
    assert "main_head.components" not in dict(model.named_parameters())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameter_groups(0.05), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.loss(spots).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = model.state_dict()
    assert losses[-1] < losses[0]
    assert torch.equal(after["main_head.components"], before["main_head.components"])
    assert not torch.equal(after["main_head.weight"], before["main_head.weight"])
    assert torch.linalg.matrix_rank(model(spots.patches).main.detach(), atol=1e-3) <= 2


def test_without_a_rank_the_head_is_the_plain_one() -> None:
    assert type(regressor(batch(), None).main_head) is torch.nn.Linear


@pytest.mark.parametrize(("rank", "given"), [(2, None), (None, 2), (2, 3)])
def test_a_rank_without_its_components_is_refused(rank: int | None, given: int | None) -> None:
    with pytest.raises(ModelError, match="needs as many principal components"):
        regressor(batch(), rank, given)
