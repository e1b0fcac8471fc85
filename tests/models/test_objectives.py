"""Objectives: losses against scipy and torch, units that come back, statistics of the training spots only."""

import math

import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stexpr.errors import GeneError, ModelError
from stexpr.models.objectives import (
    LossKind,
    NegativeBinomial,
    Objective,
    StandardizedRegression,
    batch_pearson,
    empty_objective,
    make_objective,
)
from stexpr.panel import ExpressionTransform

TRANSFORMS = [ExpressionTransform(), ExpressionTransform("log1p"), ExpressionTransform("stnet", n_genes=900)]
KINDS: list[LossKind] = ["mse", "mse_pearson", "huber", "negative_binomial"]


def draw(n: int = 40, k: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(2.0, 3.0, size=(n, k))).astype(np.float32)
    return counts, (counts.sum(axis=1) + rng.integers(50, 500, size=n)).astype(np.float32)


def fitted(
    kind: LossKind, transform: ExpressionTransform = TRANSFORMS[0], *, standardize: bool = True, k: int = 6
) -> Objective:
    counts, library = draw(k=k)
    return make_objective(kind, counts=counts, library=library, transform=transform, standardize=standardize)


def negative_binomial(rates: list[float], log_inverse: float, median_library: float = 1000.0) -> NegativeBinomial:
    log_rate = np.log(np.array(rates, dtype=np.float32))
    return NegativeBinomial(log_rate, median_library, ExpressionTransform(), log_inverse)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.kind)
@pytest.mark.parametrize("standardize", [True, False])
def test_squared_error_is_numpys(transform: ExpressionTransform, standardize: bool) -> None:
    train, train_library = draw(seed=0)
    counts, library = draw(n=9, seed=1)
    objective = make_objective("mse", counts=train, library=train_library, transform=transform, standardize=standardize)
    output = np.random.default_rng(2).normal(size=counts.shape).astype(np.float32)
    target = transform(counts.astype(np.float64), library.astype(np.float64))
    if standardize:
        fit = transform(train.astype(np.float64), train_library.astype(np.float64))
        target = (target - fit.mean(axis=0)) / fit.std(axis=0)
    loss = objective.loss(torch.from_numpy(output), torch.from_numpy(counts), torch.from_numpy(library))
    assert loss.item() == pytest.approx(np.square(output - target).mean(), rel=1e-5)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.kind)
def test_transforms_say_the_same_in_torch_and_numpy(transform: ExpressionTransform) -> None:
    counts, library = draw()
    in_torch = transform(torch.from_numpy(counts), torch.from_numpy(library))
    np.testing.assert_allclose(in_torch.numpy(), transform(counts, library), rtol=1e-5, atol=1e-6)
    if transform.kind == "stnet":
        np.testing.assert_allclose(in_torch.numpy(), np.log((counts + 1) / (library[:, None] + 900)), rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.int64, (5, 3), elements=st.integers(0, 5000)),
    st.sampled_from(TRANSFORMS),
    st.booleans(),
)
def test_the_expression_of_a_target_is_the_measured_one(
    drawn: np.ndarray, transform: ExpressionTransform, standardize: bool
) -> None:
    counts = drawn.astype(np.float32)
    library = counts.sum(axis=1) + 1
    objective = make_objective("mse", counts=counts, library=library, transform=transform, standardize=standardize)
    assert isinstance(objective, StandardizedRegression)
    back = objective.expression(objective.target(torch.from_numpy(counts), torch.from_numpy(library)))
    np.testing.assert_allclose(back.numpy(), transform(counts, library), rtol=1e-4, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 50), st.floats(-20, 20))
def test_batch_pearson_is_scipys_whatever_the_scale(seed: int, scale: float, shift: float) -> None:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(7, 4)).astype(np.float32)
    output = (0.5 * target + rng.normal(size=(7, 4))).astype(np.float32)
    expected = np.mean([scipy.stats.pearsonr(output[:, k], target[:, k]).statistic for k in range(4)])
    scaled = torch.from_numpy(output) * scale + shift
    assert batch_pearson(scaled, torch.from_numpy(target)).item() == pytest.approx(expected, abs=2e-3)


def test_genes_constant_in_a_batch_are_skipped() -> None:
    rng = np.random.default_rng(0)
    target, output = (rng.normal(size=(6, 3)).astype(np.float32) for _ in range(2))
    target[:, 1] = 7.3
    expected = np.mean([scipy.stats.pearsonr(output[:, k], target[:, k]).statistic for k in (0, 2)])
    assert batch_pearson(torch.from_numpy(output), torch.from_numpy(target)).item() == pytest.approx(expected, abs=1e-5)


def test_a_batch_in_which_nothing_varies_has_finite_slopes() -> None:
    output = torch.zeros(4, 3, requires_grad=True)
    r = batch_pearson(output, torch.ones(4, 3))
    r.backward()
    assert r.item() == 0
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_mse_pearson_adds_half_of_one_minus_r() -> None:
    counts, library = map(torch.from_numpy, draw(n=12, seed=4))
    plain, both = fitted("mse"), fitted("mse_pearson")
    assert isinstance(plain, StandardizedRegression)
    output = torch.randn(12, 6, generator=torch.Generator().manual_seed(0))
    r = batch_pearson(output, plain.target(counts, library))
    difference = both.loss(output, counts, library) - plain.loss(output, counts, library)
    assert difference.item() == pytest.approx(0.5 * (1 - r.item()), abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), spread=st.floats(0.01, 20))
def test_huber_is_scipys_and_its_slope_never_exceeds_one(seed: int, spread: float) -> None:
    counts, library = map(torch.from_numpy, draw(n=12, seed=4))
    objective = fitted("huber")
    assert isinstance(objective, StandardizedRegression)
    output = (spread * torch.randn(12, 6, generator=torch.Generator().manual_seed(seed))).requires_grad_()
    loss = objective.loss(output, counts, library)
    residual = (output.detach() - objective.target(counts, library)).double().numpy()
    assert loss.item() == pytest.approx(scipy.special.huber(1.0, residual).mean(), rel=1e-5)
    loss.backward()
    assert output.grad is not None
    np.testing.assert_allclose(output.grad.numpy() * output.numel(), np.clip(residual, -1, 1), atol=1e-5)


def test_mse_pearson_refuses_a_batch_of_one() -> None:
    counts, library = map(torch.from_numpy, draw(n=1))
    with pytest.raises(ModelError, match=r"mse_pearson.*at least two"):
        fitted("mse_pearson").loss(torch.zeros(1, 6), counts, library)


def test_who_couples_the_examples_of_a_batch() -> None:
    assert [fitted(kind).couples_examples for kind in KINDS] == [False, True, False, False]


@pytest.mark.parametrize("kind", ["mse", "huber", "negative_binomial"])
def test_uncoupled_losses_are_means_over_examples(kind: LossKind) -> None:
    counts, library = map(torch.from_numpy, draw(n=8, seed=5))
    objective, output = fitted(kind), torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
    alone = [objective.loss(output[i : i + 1], counts[i : i + 1], library[i : i + 1]).item() for i in range(8)]
    assert objective.loss(output, counts, library).item() == pytest.approx(np.mean(alone), rel=1e-5)


@pytest.mark.parametrize("log_inverse", [-8.0, -3.0, 0.0, 1.0, 3.4, 3.6, 6.0, 9.0, 12.0])
def test_negative_binomial_loss_and_slopes_are_scipys_and_torchs(log_inverse: float) -> None:
    rates, library = [1e-4, 1e-2, 0.2], np.linspace(300, 4000, 30).astype(np.float32)
    rng = np.random.default_rng(0)
    counts = rng.poisson(library[:, None] * rates * rng.gamma(2, 0.5, size=(30, 1))).astype(np.float32)
    values = rng.normal(0, 0.5, size=(30, 3)).astype(np.float32)
    objective = negative_binomial(rates, log_inverse)
    output = torch.from_numpy(values).requires_grad_()
    loss = objective.loss(output, torch.from_numpy(counts), torch.from_numpy(library))
    loss.backward()

    inverse, mean = math.exp(log_inverse), np.array(rates) * np.exp(values.astype(float)) * library[:, None]
    expected = -scipy.stats.nbinom.logpmf(counts, inverse, inverse / (inverse + mean)).mean()
    assert loss.item() == pytest.approx(expected, rel=2e-5)

    log_r = torch.full((3,), log_inverse, dtype=torch.float64, requires_grad=True)
    exact = torch.from_numpy(values).double().requires_grad_()
    log_mean = torch.tensor(rates).double().log() + exact + torch.from_numpy(library).double().log()[:, None]
    oracle = torch.distributions.NegativeBinomial(log_r.exp(), logits=log_mean - log_r, validate_args=False)
    (-oracle.log_prob(torch.from_numpy(counts).double()).mean()).backward()
    assert output.grad is not None
    assert exact.grad is not None
    np.testing.assert_allclose(output.grad.numpy(), exact.grad.numpy(), rtol=1e-3, atol=2e-6)
    if abs(log_inverse) not in (8.0, 12.0):  # at the limits the slope is cut
        slope, oracle_slope = objective.log_inverse_dispersion.grad, log_r.grad
        assert slope is not None
        assert oracle_slope is not None
        # near Poisson the slope is tiny; in single precision a difference of two log gammas would bury it
        np.testing.assert_allclose(slope.numpy(), oracle_slope.numpy(), rtol=1e-2, atol=3e-5)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.kind)
def test_output_zero_predicts_the_training_rate(transform: ExpressionTransform) -> None:
    counts, library = draw()
    objective = make_objective("negative_binomial", counts=counts, library=library, transform=transform)
    median = np.median(library)
    rate = counts.sum(axis=0) / library.sum()
    expected = transform((rate * median)[None].astype(np.float64), np.array([median], dtype=np.float64))
    predicted = objective.expression(objective.initial_bias().expand(3, -1))
    np.testing.assert_allclose(predicted.numpy(), np.repeat(expected, 3, axis=0), rtol=5e-3)


def test_a_gene_without_training_counts_stays_finite() -> None:
    counts, library = draw()
    counts[:, 0] = 0
    objective = make_objective("negative_binomial", counts=counts, library=library, transform=ExpressionTransform())
    assert objective.expression(torch.zeros(2, 6)).isfinite().all()
    assert objective.loss(torch.zeros(40, 6), torch.from_numpy(counts), torch.from_numpy(library)).isfinite()


def test_prediction_knows_no_test_library() -> None:
    # the library is no argument of `expression`; training depth decides, so equal outputs give equal predictions
    objective = negative_binomial([0.01, 0.1], 1.0, median_library=500.0)
    output = torch.tensor([[0.3, -0.2]]).expand(4, 2)
    predicted = objective.expression(output)
    assert (predicted == predicted[0]).all()
    mean = np.array([0.01, 0.1]) * np.exp([0.3, -0.2])
    np.testing.assert_allclose(predicted[0].numpy(), np.log1p(mean * 1e4), rtol=1e-5)


@pytest.mark.parametrize("extreme", [-1e30, -1e4, -88.0, 0.0, 88.0, 1e4, 1e30])
@pytest.mark.parametrize("log_inverse", [-30.0, 1.0, 30.0])
def test_negative_binomial_is_finite_at_the_extremes(extreme: float, log_inverse: float) -> None:
    objective = negative_binomial([1e-6, 0.01, 0.5], log_inverse)
    output = torch.full((3, 3), extreme, requires_grad=True)
    counts = torch.tensor([[0.0, 1.0, 50_000.0]]).expand(3, 3)
    loss = objective.loss(output, counts, torch.tensor([1.0, 1e3, 1e6]))
    loss.backward()
    assert loss.isfinite()
    assert output.grad is not None
    assert output.grad.isfinite().all()
    assert objective.log_inverse_dispersion.grad is not None
    assert objective.log_inverse_dispersion.grad.isfinite().all()
    assert objective.expression(output).isfinite().all()


@pytest.mark.parametrize("kind", ["mse", "mse_pearson", "huber"])
def test_regression_slopes_are_finite_at_large_outputs(kind: LossKind) -> None:
    counts, library = map(torch.from_numpy, draw(n=4))
    output = torch.full((4, 6), 1e15, requires_grad=True)
    fitted(kind).loss(output, counts, library).backward()
    assert output.grad is not None
    assert output.grad.isfinite().all()


def test_gradient_descent_recovers_planted_rates_and_dispersion() -> None:
    rng = np.random.default_rng(0)
    n, rates, inverse = 3000, np.array([0.002, 0.01, 0.05]), np.array([0.5, 2.0, 8.0])
    library = rng.lognormal(7, 0.5, size=n)
    group = rng.integers(0, 2, size=n)
    fold = np.array([[0.0, 0.0, 0.0], [1.0, -0.7, 0.4]])
    mean = rates * np.exp(fold[group]) * library[:, None]
    counts = rng.poisson(rng.gamma(inverse, mean / inverse)).astype(np.float32)
    objective = make_objective(
        "negative_binomial", counts=counts, library=library.astype(np.float32), transform=ExpressionTransform()
    )
    assert isinstance(objective, NegativeBinomial)
    output = torch.zeros(2, 3, requires_grad=True)
    optimizer = torch.optim.Adam([output, *objective.parameters()], lr=0.05)
    which, tensors = torch.from_numpy(group), (torch.from_numpy(counts), torch.from_numpy(library.astype(np.float32)))
    for _ in range(250):
        optimizer.zero_grad()
        objective.loss(output[which], *tensors).backward()
        optimizer.step()
    found = (objective.log_rate + output).detach().numpy()
    np.testing.assert_allclose(found, np.log(rates) + fold, atol=0.12)
    np.testing.assert_allclose(objective.log_inverse_dispersion.detach().numpy(), np.log(inverse), atol=0.25)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.kind)
@pytest.mark.parametrize("standardize", [True, False])
def test_a_saved_objective_comes_back_whole(kind: LossKind, transform: ExpressionTransform, standardize: bool) -> None:
    objective = fitted(kind, transform, standardize=standardize)
    again = empty_objective(objective.settings(), 6, transform)
    again.load_state_dict(objective.state_dict())
    counts, library = map(torch.from_numpy, draw(n=5, seed=9))
    output = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.expression(output), objective.expression(output))
    assert torch.equal(again.loss(output, counts, library), objective.loss(output, counts, library))
    assert (again.kind, again.couples_examples) == (objective.kind, objective.couples_examples)


@pytest.mark.parametrize(
    "values", [{}, {"kind": "absolute"}, {"kind": "mse"}, {"kind": "mse", "standardize": "yes"}, {"kind": None}]
)
def test_foreign_settings_are_refused(values: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="not the settings of an objective"):
        empty_objective(values, 3, ExpressionTransform())


@pytest.mark.parametrize("kind", KINDS)
def test_only_training_statistics_are_kept(kind: LossKind) -> None:
    names = set(fitted(kind).state_dict())
    wanted = {"log_rate", "median_library", "log_inverse_dispersion"} if kind == "negative_binomial" else {"mean", "sd"}
    assert names == wanted


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda transform: transform.kind)
@pytest.mark.parametrize("standardize", [True, False])
def test_the_initial_bias_is_the_training_mean(transform: ExpressionTransform, standardize: bool) -> None:
    counts, library = draw()
    objective = fitted("mse", transform, standardize=standardize)
    expected = transform(counts, library).mean(axis=0)
    np.testing.assert_allclose(objective.expression(objective.initial_bias()[None])[0].numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_training_spot_is_refused(kind: LossKind) -> None:
    with pytest.raises(GeneError):
        make_objective(
            kind,
            counts=np.zeros((0, 3), dtype=np.float32),
            library=np.zeros(0, dtype=np.float32),
            transform=ExpressionTransform(),
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_are_scored_in_single(dtype: torch.dtype) -> None:
    counts, library = map(torch.from_numpy, draw(n=5))
    for kind in KINDS:
        objective = fitted(kind)
        assert objective.loss(torch.zeros(5, 6, dtype=dtype), counts, library).dtype == torch.float32
        assert objective.expression(torch.zeros(5, 6, dtype=dtype)).dtype == torch.float32
