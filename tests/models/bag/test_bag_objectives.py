"""Objectives of slides: means over observed labels, capped weights, orders that hold."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from stexpr.errors import ModelError
from stexpr.models.bag.objectives import Fraction, MultiClass, MultiLabel, Ordinal


def test_missing_labels_have_neither_value_nor_gradient() -> None:
    output = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    target = torch.tensor([[1, 0, math.nan], [math.nan] * 3, [0, 1, 1], [1, math.nan, 0], [0, 0, 1]])
    loss = MultiLabel(torch.ones(3)).loss(output, target)
    observed = target.isfinite()
    assert loss.denominator == int(observed.sum())
    expected = functional.binary_cross_entropy_with_logits(output[observed], target[observed])
    torch.testing.assert_close(loss.total, expected)
    loss.total.backward()
    assert output.grad is not None
    assert torch.equal(output.grad != 0, observed)


@given(split=st.integers(1, 9))
@settings(max_examples=9, deadline=None)
def test_losses_of_parts_add_up_by_their_denominators(split: int) -> None:
    generator = torch.Generator().manual_seed(0)
    output, label = torch.randn(10, 4, generator=generator), torch.randint(-1, 4, (10,), generator=generator)
    many = torch.where(label[:, None] >= 0, (label[:, None] > torch.arange(4)).float(), torch.nan)
    for objective, target in (
        (MultiLabel(torch.tensor([1.0, 2.0, 0.5, 3.0])), many),
        (MultiClass(torch.tensor([1.0, 2.0, 0.5, 3.0])), label),
    ):
        whole = objective.loss(output, target)
        parts = [objective.loss(output[rows], target[rows]) for rows in (slice(split), slice(split, None))]
        total = sum(float(part.total) * part.denominator for part in parts)
        assert total == pytest.approx(float(whole.total) * whole.denominator, rel=1e-5)


def test_weights_are_capped_and_one_sided_labels_named() -> None:
    target = torch.zeros(1000, 3)
    target[0, 0], target[:250, 1], target[1:, 2] = 1, 1, 1
    assert MultiLabel.fit(target, ["TP53", "CDH1", "TTN"], most=10.0).weights.tolist() == pytest.approx([10, 3, 0.1])
    target[:, 0] = 0
    target[:, 2] = math.nan
    with pytest.raises(ModelError, match="TP53, TTN"):
        MultiLabel.fit(target, ["TP53", "CDH1", "TTN"])
    classes = torch.tensor([0] * 90 + [1] * 9 + [2] + [-1] * 50)
    assert MultiClass.fit(classes, ["a", "b", "c"], most=5.0).weights.tolist() == pytest.approx([100 / 270, 100 / 27, 5])
    with pytest.raises(ModelError, match="class d"):
        MultiClass.fit(classes, ["a", "b", "c", "d"])


def test_a_fraction_stays_one() -> None:
    objective, output = Fraction(), torch.tensor([[-50.0], [0.0], [50.0]])
    torch.testing.assert_close(objective.predict(output), torch.tensor([0.0, 0.5, 1.0]))
    loss = objective.loss(output, torch.tensor([0.5, 0.25, math.nan]))
    assert float(loss.total) == pytest.approx((25 + math.log(2)) / 2)  # -log sigmoid(-50) is 50, and half of the share is no
    assert loss.denominator == 2
    with pytest.raises(ModelError, match="divide percentages by 100"):
        objective.loss(output, torch.tensor([5.0, 20.0, 30.0]))


def test_nothing_observed_is_no_loss() -> None:
    output = torch.zeros(2, 1, requires_grad=True)
    loss = Fraction().loss(output, torch.full((2,), math.nan))
    assert (float(loss.total.detach()), loss.denominator) == (0, 0)
    loss.total.backward()
    assert output.grad is not None
    assert not output.grad.any()


def test_classes_agree_with_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    output, target = torch.randn(8, 3, generator=generator), torch.tensor([0, 1, 2, -1, 0, 1, 2, -1])
    objective = MultiClass(torch.ones(3))
    expected = functional.cross_entropy(output, target, ignore_index=-1)
    torch.testing.assert_close(objective.loss(output, target).total, expected)
    torch.testing.assert_close(objective.predict(output).sum(dim=1), torch.ones(8))


@given(n=st.integers(2, 6), score=st.floats(-20, 20))
@settings(max_examples=40, deadline=None)
def test_grades_are_probabilities_that_rise_with_the_score(n: int, score: float) -> None:
    objective = Ordinal(n)
    low, high = (objective.predict(torch.tensor([[s]])).detach()[0] for s in (score, score + 1))
    assert float(low.min()) >= 0
    assert float(low.sum()) == pytest.approx(1, abs=1e-5)
    grades = torch.arange(n)
    assert float((high * grades).sum() - (low * grades).sum()) >= -1e-6
    assert bool((objective.thresholds().diff() > 0).all())


def test_grades_of_two_classes_are_logistic_regression() -> None:
    output = torch.tensor([[-1.0], [0.5], [2.0]])
    loss = Ordinal(2).loss(output, torch.tensor([0, 1, 0]))
    expected = functional.binary_cross_entropy_with_logits(output[:, 0], torch.tensor([0.0, 1.0, 0.0]))
    torch.testing.assert_close(loss.total, expected)
    with pytest.raises(ModelError, match="two classes"):
        Ordinal(1)
