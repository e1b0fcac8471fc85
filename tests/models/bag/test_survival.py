"""Survival losses against torchsurv, lifelines and scikit-survival, and the whole cohort in two passes."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from stexpr.errors import DataError, ModelError
from stexpr.models.bag import HEADS, make_head
from stexpr.models.bag.exact import gradient_in_parts
from stexpr.models.bag.survival import DiscreteTime, cox_loss
from stexpr.types import BagBatch


def patients(n: int = 60, seed: int = 0, last: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Log hazards, times with many ties and events."""
    rng = np.random.default_rng(seed)
    time = torch.from_numpy(rng.integers(1, last, n).astype(np.float32))
    event = torch.from_numpy(rng.random(n) < 0.6)
    event[0] = True
    return torch.from_numpy(rng.normal(size=n)), time, event


def plain_efron(eta: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """The formula, event time by event time."""
    total = eta.new_zeros(())
    for at in time[event].unique():
        tied = eta[(time == at) & event]
        risk = eta[time >= at].exp().sum()
        total = total + tied.sum()
        for rank in range(len(tied)):
            total = total - (risk - rank / len(tied) * tied.exp().sum()).log()
    return -total / event.sum()


@given(seed=st.integers(0, 10_000), n=st.integers(1, 50), last=st.integers(2, 40))
@settings(max_examples=20, deadline=None)
def test_cox_is_efrons_formula_in_value_and_gradient(seed: int, n: int, last: int) -> None:
    eta, time, event = patients(n, seed, last)
    own, plain = eta.clone().requires_grad_(), eta.clone().requires_grad_()
    a, b = cox_loss(own, time, event), plain_efron(plain, time, event)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    a.backward()
    b.backward()
    torch.testing.assert_close(own.grad, plain.grad, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(cox_loss(eta + 500, time, event), a.detach(), rtol=1e-6, atol=1e-6)


def test_cox_agrees_with_torchsurv() -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=FutureWarning)
        warnings.filterwarnings("ignore", message="`torch.jit.script` is deprecated", category=DeprecationWarning)
        cox = pytest.importorskip("torchsurv.loss.cox", reason="torchsurv is not installed")
    eta, time, event = patients()
    with pytest.warns(UserWarning, match="using efron method"):
        theirs = cox.neg_partial_log_likelihood(eta.float(), event, time, ties_method="efron", reduction="sum")
    assert float(cox_loss(eta, time, event)) == pytest.approx(float(theirs) / int(event.sum()), abs=1e-5)


def test_cox_agrees_with_lifelines() -> None:
    lifelines = pytest.importorskip("lifelines", reason="lifelines is an oracle of the test extra")
    x, time, event = patients(80)
    table = pd.DataFrame({"x": x.numpy(), "time": time.numpy(), "event": event.numpy()})
    fitted = lifelines.CoxPHFitter().fit(table, "time", "event")
    eta = x * float(fitted.params_["x"])
    assert float(cox_loss(eta, time, event)) == pytest.approx(-fitted.log_likelihood_ / int(event.sum()), abs=1e-5)


def test_cox_is_least_where_scikit_survival_says() -> None:
    linear = pytest.importorskip("sksurv.linear_model", reason="scikit-survival is an oracle of the test extra")
    util = pytest.importorskip("sksurv.util", reason="scikit-survival is an oracle of the test extra")
    rng = np.random.default_rng(0)
    x, (_, time, event) = rng.normal(size=(80, 3)), patients(80)
    theirs = linear.CoxPHSurvivalAnalysis(ties="efron", tol=1e-12).fit(x, util.Surv.from_arrays(event.numpy(), time.numpy()))
    weights = torch.from_numpy(theirs.coef_.copy()).requires_grad_()
    cox_loss(torch.from_numpy(x) @ weights, time, event).backward()
    assert weights.grad is not None
    assert weights.grad.abs().max() < 1e-5


def cox_in_parts(log_hazard: Callable[[BagBatch], Tensor], batches: list[BagBatch], time: Tensor, event: Tensor) -> Tensor:
    """Return the loss of the cohort, its gradient added to the parameters."""
    return gradient_in_parts(
        lambda batch: (log_hazard(batch), torch.zeros(())), batches, lambda eta: cox_loss(eta, time, event)
    )


@pytest.mark.parametrize("kind", sorted(set(HEADS) - {"clam"}))  # CLAM has one output for each class, a log hazard is one
def test_two_passes_give_the_gradient_of_the_whole_cohort(kind: str) -> None:
    encoder = nn.Sequential(nn.Linear(6, 5), nn.Tanh())
    head = make_head(kind, 5, 1, widths=(8,), dropout=0.0)
    both = nn.ModuleList([encoder, head])
    _, time, event = patients(12)
    generator = torch.Generator().manual_seed(0)
    bags = [torch.randn(1 + i % 5, 6, generator=generator) for i in range(12)]

    def log_hazard(batch: BagBatch) -> Tensor:
        return head(BagBatch(encoder(batch.instances), batch.offsets)).output[:, 0]

    loss = cox_loss(log_hazard(BagBatch.of(bags)), time, event)
    loss.backward()
    whole = [parameter.grad for parameter in both.parameters()]
    both.zero_grad(set_to_none=True)
    batches = [BagBatch.of(bags[:1]), BagBatch.of(bags[1:8]), BagBatch.of(bags[8:])]
    assert float(cox_in_parts(log_hazard, batches, time, event)) == pytest.approx(float(loss.detach()), abs=1e-6)
    for parameter, grad in zip(both.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-5)


def test_two_passes_draw_the_same_dropout() -> None:
    head = make_head("attention", 6, 1, widths=(8,), dropout=0.5).train()
    _, time, event = patients(8)
    generator = torch.Generator().manual_seed(0)
    batches = [BagBatch.of([torch.randn(4, 6, generator=generator) for _ in range(4)]) for _ in range(2)]
    torch.manual_seed(5)
    cox_loss(torch.cat([head(batch).output[:, 0] for batch in batches]), time, event).backward()
    whole = [parameter.grad for parameter in head.parameters()]
    after = torch.get_rng_state()
    head.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    cox_in_parts(lambda batch: head(batch).output[:, 0], batches, time, event)
    assert torch.equal(torch.get_rng_state(), after)
    for parameter, grad in zip(head.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-5, atol=1e-6)


def test_survival_without_a_likelihood_is_refused() -> None:
    eta, time, event = patients(5)
    with pytest.raises(DataError, match="none of 5 patients has an event"):
        cox_loss(eta, time, torch.zeros(5, dtype=torch.bool))
    for bad in (0.0, -1.0, math.nan, math.inf):
        wrong = time.clone()
        wrong[2] = bad
        with pytest.raises(DataError, match="1 of 5 survival times"):
            cox_loss(eta, wrong, event)


def test_discrete_time_is_the_product_of_hazards() -> None:
    objective = DiscreteTime(torch.tensor([1.0, 2.0, 4.0]))
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(6, 4, generator=generator)
    target = torch.tensor([[0.5, 1.0], [1.0, 0.0], [1.5, 1.0], [4.0, 0.0], [9.0, 1.0], [9.0, 0.0]])
    hazard, expected = output.sigmoid().double(), 0.0
    for row, (time, event) in zip(hazard, target.tolist(), strict=True):
        own = int(sum(time > bound for bound in (1.0, 2.0, 4.0)))
        likelihood = math.prod(1 - float(row[i]) for i in range(own)) * (float(row[own]) if event else 1.0)
        expected -= math.log(likelihood) / len(target)
    assert float(objective.loss(output, target).total) == pytest.approx(expected, abs=1e-6)
    survival = objective.predict(output)
    torch.testing.assert_close(survival[:, 1], ((1 - hazard[:, 0]) * (1 - hazard[:, 1])).float())
    assert bool((survival.diff(dim=1) <= 0).all())


def test_the_best_constant_hazards_are_those_of_the_life_table() -> None:
    """Without features the likelihood is greatest at events / patients at risk: Kaplan-Meier of the intervals."""
    _, time, event = patients(200)
    objective = DiscreteTime.fit(time, event, 4)
    target, own = torch.stack([time, event.float()], dim=1), objective.bins(time)
    logits = torch.zeros(objective.n_outputs, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-12)

    def closure() -> float:
        optimizer.zero_grad()
        loss = objective.loss(logits.expand(200, -1), target).total
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    for i in range(objective.n_outputs):
        died, at_risk = int(((own == i) & event).sum()), int(((own > i) | ((own == i) & event)).sum())
        assert float(logits[i].detach().sigmoid()) == pytest.approx(died / at_risk, abs=1e-4)


def test_intervals_come_from_observed_events() -> None:
    time, event = torch.arange(1.0, 101.0), torch.arange(100) % 2 == 0
    bounds = DiscreteTime.fit(time, event, 4).bounds
    held = torch.bincount(torch.bucketize(time[event], bounds), minlength=4)
    assert int(held.max() - held.min()) <= 1
    assert torch.equal(DiscreteTime.fit(torch.cat([time, 1000 + time]), torch.cat([event, event & False]), 4).bounds, bounds)
    assert DiscreteTime.fit(torch.ones(9), torch.ones(9, dtype=torch.bool), 4).n_outputs == 2
    with pytest.raises(ModelError, match="two intervals"):
        DiscreteTime.fit(time, event, 1)
    with pytest.raises(ModelError, match="must rise"):
        DiscreteTime(torch.tensor([2.0, 1.0]))
