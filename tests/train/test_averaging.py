"""The moving average of weights: against its recursion, and what validation and the final model are with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from stexpr.config import StudyConfig
from stexpr.train.averaging import Average
from test_loop import make_fit, run


@settings(max_examples=25, deadline=None)
@given(decay=st.floats(0.01, 0.999), n=st.integers(1, 12), seed=st.integers(0, 1000))
def test_the_average_is_that_of_its_recursion_and_begins_as_a_plain_mean(decay: float, n: int, seed: int):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model.register_buffer("fixed", torch.rand(4) * 1e3)
    average, fixed = Average(model, decay), model.fixed.clone()
    seen: list[dict[str, np.ndarray]] = []
    for number in range(n):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()
        model(torch.randn(5, 3))
        average.update(model, number)
        seen.append({key: value.double().numpy().copy() for key, value in model.state_dict().items()})
    for key in ("0.weight", "1.running_mean", "1.running_var"):
        expected = seen[0][key]
        for number, values in enumerate(seen[1:], start=1):
            kept = min(decay, number / (number + 1))
            expected = kept * expected + (1 - kept) * values[key]
        np.testing.assert_allclose(average.weights[key].numpy(), expected, rtol=1e-4, atol=1e-5)
        if decay >= (n - 1) / n:
            np.testing.assert_allclose(expected, np.mean([values[key] for values in seen], axis=0), rtol=1e-9, atol=1e-12)
    assert torch.equal(average.weights["fixed"], fixed)
    assert average.weights["1.num_batches_tracked"] == n


def test_a_network_has_its_own_weights_again_after_an_error():
    model = nn.Linear(2, 1)
    average = Average(model, 0.5)
    with torch.no_grad():
        model.weight.fill_(3)

    def lend() -> None:
        with average.within(model):
            assert torch.equal(model.weight, average.weights["weight"])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lend()
    assert (model.weight == 3).all()


@pytest.mark.parametrize("keep_best", [True, False])
def test_validation_and_the_final_weights_are_the_average(
    study: Callable[..., StudyConfig], small_cohort: Path, keep_best: bool
):
    fit = make_fit(study("training.epochs=3", "training.lr=3e-2", "training.average=0.8"), small_cohort)
    average = fit.average
    assert average is not None
    between: list[bool] = []
    run(
        fit,
        keep_best=keep_best,
        on_epoch=lambda _: between.append(torch.equal(fit.model.main_head.weight, average.weights["main_head.weight"])),
    )
    assert between == [False] * 3  # what a checkpoint saves as the model goes on being trained
    expected = max(fit.state.curve) if keep_best else fit.state.curve[-1]
    assert fit.validation.measure() == pytest.approx(expected, abs=1e-9)
    if not keep_best:
        assert all(torch.equal(value, average.weights[key]) for key, value in fit.model.state_dict().items())


def test_the_average_changes_no_step(study: Callable[..., StudyConfig], small_cohort: Path):
    plain, averaged = (make_fit(study(*more), small_cohort) for more in ((), ("training.average=0.9",)))
    said = [[values["train/loss"] for values in run(fit)] for fit in (plain, averaged)]
    assert said[0] == said[1]
    assert "average" not in plain.state_dict()
