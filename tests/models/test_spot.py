"""The spot regressor: heads that do not disturb each other, predictions that do not see which way up a patch is."""

import numpy as np
import pytest
import torch

from stexpr.config import AuxiliaryConfig, NetworkConfig
from stexpr.errors import ModelError
from stexpr.models.augment import N_SYMMETRIES, apply_symmetries
from stexpr.models.backbones import create_backbone
from stexpr.models.objectives import LossKind, Objective, make_objective
from stexpr.models.spot import SpotRegressor, build_spot_regressor
from stexpr.panel import ExpressionTransform
from stexpr.types import SpotBatch

WINDOW, N_MAIN, N_AUXILIARY = 32, 5, 4


def spots(n: int = 6, seed: int = 0) -> SpotBatch:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.poisson(torch.full((n, N_MAIN + N_AUXILIARY), 4.0), generator=generator)
    return SpotBatch(
        torch.randint(0, 256, (n, 3, WINDOW, WINDOW), dtype=torch.uint8, generator=generator),
        counts[:, :N_MAIN].contiguous(),
        counts[:, N_MAIN:].contiguous(),
        counts.sum(dim=1),
    )


def objective(part: str, kind: LossKind = "mse", *, standardize: bool = True) -> Objective:
    batch = spots(40, seed=7)
    counts = batch.counts_main if part == "main" else batch.counts_auxiliary
    return make_objective(
        kind,
        counts=counts.numpy(),
        library=batch.library.numpy(),
        transform=ExpressionTransform(),
        standardize=standardize,
    )


def regressor(
    *, weight: float = 1.0, auxiliary: bool = True, backbone: str = "tiny", kind: LossKind = "mse", seed: int = 0
) -> SpotRegressor:
    return build_spot_regressor(
        NetworkConfig(backbone=backbone, auxiliary=AuxiliaryConfig(weight=weight), loss=kind),
        window_px=WINDOW,
        main_objective=objective("main", kind),
        auxiliary_objective=objective("auxiliary", kind) if auxiliary else None,
        seed=seed,
    )


def train(model: SpotRegressor, optimizer_name: str, steps: int = 5) -> dict[str, torch.Tensor]:
    model.train()
    groups = model.parameter_groups(0.05)
    optimizer: torch.optim.Optimizer
    if optimizer_name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9)
    else:
        optimizer = torch.optim.AdamW(groups, lr=1e-3)
    for step in range(steps):
        optimizer.zero_grad()
        model.loss(spots(seed=step)).total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("auxiliary")}


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize(("backbone", "kind"), [("tiny", "mse"), ("resnet18", "mse"), ("tiny", "negative_binomial")])
def test_an_auxiliary_head_of_weight_zero_changes_no_bit(optimizer: str, backbone: str, kind: LossKind) -> None:
    with_head = regressor(weight=0.0, backbone=backbone, kind=kind)
    assert with_head.auxiliary_head is not None
    head_before = with_head.auxiliary_head.weight.detach().clone()
    zero = train(with_head, optimizer)
    without = train(regressor(auxiliary=False, backbone=backbone, kind=kind), optimizer)
    assert zero.keys() == without.keys()
    assert all(torch.equal(zero[key], without[key]) for key in zero)
    assert torch.equal(with_head.auxiliary_head.weight, head_before)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_auxiliary_head_of_weight_one_changes_the_features(optimizer: str) -> None:
    one, without = train(regressor(weight=1.0), optimizer), train(regressor(auxiliary=False), optimizer)
    changed = {key for key in one if not torch.equal(one[key], without[key])}
    assert "backbone.network.stages.0.weight" in changed
    assert "main_head.weight" in changed


def test_heads_start_from_streams_of_their_own() -> None:
    with_head, without = regressor(), regressor(auxiliary=False)
    assert torch.equal(with_head.main_head.weight, without.main_head.weight)
    assert with_head.auxiliary_head is not None
    flat = [head.weight.flatten()[:50] for head in (with_head.main_head, with_head.auxiliary_head)]
    assert not torch.equal(*flat)
    assert not torch.equal(regressor(seed=1).main_head.weight, with_head.main_head.weight)
    assert torch.equal(regressor(seed=1).main_head.weight, regressor(seed=1).main_head.weight)


def test_building_leaves_the_random_state() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    regressor()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("weight", [0.25, 1.0, 3.0])
@pytest.mark.parametrize("kind", ["mse", "mse_pearson", "negative_binomial"])
def test_loss_parts_add_up(weight: float, kind: LossKind) -> None:
    model, batch = regressor(weight=weight, kind=kind), spots()
    loss = model.loss(batch)
    assert set(loss.parts) == {"main", "auxiliary"}
    assert loss.total.item() == pytest.approx((loss.parts["main"] + weight * loss.parts["auxiliary"]).item(), rel=1e-6)
    assert not any(part.requires_grad for part in loss.parts.values())
    assert loss.denominator == 6
    output = model(batch.patches)
    expected = model.main_objective.loss(output.main, batch.counts_main, batch.library)
    assert torch.equal(loss.parts["main"], expected.detach())


@pytest.mark.parametrize(("weight", "auxiliary"), [(0.0, True), (1.0, False)])
def test_without_auxiliary_loss_the_main_part_is_all(weight: float, auxiliary: bool) -> None:
    loss = regressor(weight=weight, auxiliary=auxiliary).loss(spots())
    assert set(loss.parts) == {"main"}
    assert torch.equal(loss.total.detach(), loss.parts["main"])


def test_outputs_have_the_heads_shapes() -> None:
    output = regressor()(spots().patches)
    assert output.main.shape == (6, N_MAIN)
    assert output.auxiliary is not None
    assert output.auxiliary.shape == (6, N_AUXILIARY)
    assert regressor(auxiliary=False)(spots().patches).auxiliary is None


@pytest.mark.parametrize(("kind", "couples"), [("mse", False), ("mse_pearson", True), ("negative_binomial", False)])
def test_coupling_is_the_objectives(kind: LossKind, couples: bool) -> None:
    assert regressor(kind=kind).couples_examples is couples


@pytest.mark.parametrize("kind", ["mse", "negative_binomial"])
@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "vit_b32"])
def test_parameter_groups_cover_each_parameter_once_and_spare_biases(backbone: str, kind: LossKind) -> None:
    model = regressor(backbone=backbone, kind=kind)
    decayed, spared = model.parameter_groups(0.05)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    ids = [id(parameter) for group in (decayed, spared) for parameter in group["params"]]
    assert sorted(ids) == sorted(id(parameter) for parameter in model.parameters())
    decaying = {id(parameter) for parameter in decayed["params"]}
    names = [name for name, parameter in model.named_parameters() if id(parameter) in decaying]
    assert "main_head.weight" in names
    assert not [name for name in names if name.endswith("bias") or "norm" in name or "dispersion" in name]


def test_frozen_parameters_are_left_to_rest() -> None:
    model = regressor()
    model.backbone.requires_grad_(False)
    trained = [p for group in model.parameter_groups(0.1) for p in group["params"]]
    assert len(trained) == 4  # weight and bias of two heads


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_prediction_over_symmetries_does_not_see_which_way_up(backbone: str) -> None:
    model, patches = regressor(backbone=backbone).eval(), spots(3).patches
    with torch.inference_mode():
        expected = model.predict(patches, symmetries=True)
        plain = model.predict(patches)
        for which in range(N_SYMMETRIES):
            turned = apply_symmetries(patches, torch.full((3,), which))
            assert (model.predict(turned, symmetries=True) - expected).abs().max() < 1e-5
        assert (model.predict(apply_symmetries(patches, torch.full((3,), 5))) - plain).abs().max() > 1e-5


def test_prediction_over_symmetries_is_the_mean_of_eight() -> None:
    model, patches = regressor(kind="negative_binomial").eval(), spots(2).patches
    with torch.inference_mode():
        eight = [model.predict(apply_symmetries(patches, torch.full((2,), which))) for which in range(N_SYMMETRIES)]
        assert torch.allclose(model.predict(patches, symmetries=True), torch.stack(eight).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
def test_memory_format_does_not_change_predictions(backbone: str) -> None:
    patches = spots(3).patches
    with torch.inference_mode():
        plain = regressor(backbone=backbone).eval().predict(patches)
        last = regressor(backbone=backbone).eval().to(memory_format=torch.channels_last).predict(patches)
    assert (plain - last).abs().max() < 1e-4


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("kind", ["mse", "mse_pearson"])
def test_training_mean_bias_predicts_the_training_mean(standardize: bool, kind: LossKind) -> None:
    main = objective("main", kind, standardize=standardize)
    model = SpotRegressor(create_backbone("tiny", window_px=WINDOW), main, None, bias_init="training_mean")
    torch.nn.init.zeros_(model.main_head.weight)
    batch = spots(40, seed=7)
    mean = ExpressionTransform()(batch.counts_main, batch.library).mean(dim=0)
    with torch.inference_mode():
        predicted = model.predict(spots().patches)
    np.testing.assert_allclose(predicted.numpy(), mean.expand(6, -1).numpy(), rtol=1e-5)


def test_zero_bias_starts_at_zero() -> None:
    main = objective("main", standardize=False)
    model = SpotRegressor(create_backbone("tiny", window_px=WINDOW), main, None, bias_init="zero")
    assert not model.main_head.bias.any()


def test_build_passes_the_bias_on() -> None:
    main = objective("main", standardize=False)
    config = NetworkConfig(backbone="tiny", bias_init="training_mean")
    model = build_spot_regressor(config, window_px=WINDOW, main_objective=main, auxiliary_objective=None, seed=0)
    assert torch.equal(model.main_head.bias, main.initial_bias())


def test_a_model_without_genes_is_refused() -> None:
    counts = np.zeros((4, 0), dtype=np.float32)
    empty = make_objective("mse", counts=counts, library=np.ones(4, dtype=np.float32), transform=ExpressionTransform())
    with pytest.raises(ModelError, match="at least one main gene"):
        build_spot_regressor(
            NetworkConfig(backbone="tiny"), window_px=WINDOW, main_objective=empty, auxiliary_objective=None, seed=0
        )


def test_learning_lowers_the_loss() -> None:
    model, batch = regressor(), spots(8)
    optimizer = torch.optim.AdamW(model.parameter_groups(0.0), lr=3e-3)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = model.loss(batch).total
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
