import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stexpr.config import StudyConfig, TrainingConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.store import PreparedCohort
from stexpr.errors import TrainingError
from stexpr.inference import autocast, pick_device, predict_expression, predictions_anndata
from stexpr.panel import ExpressionTransform, GenePanel
from stexpr.train.checkpoint import StopFlag
from stexpr.train.distributed import Processes
from stexpr.train.loop import Fit, FitState, Validation, make_optimizer
from stexpr.train.network import NetworkTraining, build_network, changed
from stexpr.train.spots import study_folds
from stexpr.train.validation import choose_epoch, validation_pearson

PANEL = GenePanel(
    main=tuple(f"G{i:02d}" for i in range(12)), auxiliary=("G20", "G21"), rule="list", scope="training", min_detection=0.0
)
UNIT = ExpressionTransform()


def make_fit(config: StudyConfig, cohort: Path) -> Fit:
    data = SpotDataset(PreparedCohort.open(cohort), ["b1", "c1"], PANEL, window_px=24)
    model = build_network(config, data, torch.arange(len(data)), UNIT)
    return Fit(
        model,
        data,
        torch.arange(64),
        validation=Validation("pearson", lambda: validate(model, data, torch.arange(64, 128), config)),
        augment=partial(changed, config),
        training=config.training,
        n_epochs=config.training.epochs,
        seed=0,
        phase=0,
    )


def validate(model, data: SpotDataset, rows: torch.Tensor, config: StudyConfig) -> float:
    return validation_pearson(model, data, rows, UNIT, config.training)


def run(fit: Fit, **changes) -> list[dict]:
    said: list[dict] = []
    fit.run(**{"keep_best": False, "stop": StopFlag(), "on_epoch": said.append, "save": lambda: None, **changes})
    return said


def test_the_loss_falls_and_r_rises(study: Callable[..., StudyConfig], small_cohort: Path):
    said = run(make_fit(study("training.epochs=12"), small_cohort))
    assert said[-1]["train/main"] < 0.8 * said[0]["train/main"]
    assert said[-1]["val/pearson"] > 0.5
    assert [values["epoch"] for values in said] == list(range(1, 13))


@pytest.mark.parametrize(
    ("at", "option"),
    [
        *((at, "training.average=null") for at in (1, 3, 5, 7)),
        *((at, "training.average=0.7") for at in (2, 4, 7)),
        (6, "training.mixup=0.4"),
    ],
)
def test_stopping_at_any_step_changes_nothing(study: Callable[..., StudyConfig], small_cohort: Path, at: int, option: str):
    config = study("training.epochs=2", option)  # 4 steps an epoch
    whole = make_fit(config, small_cohort)
    expected = run(whole)

    stopped, saved, steps = make_fit(config, small_cohort), [], [0]
    flag = StopFlag()
    original = stopped.optimizer.step

    def counted(*args, **kwargs):
        steps[0] += 1
        flag.signal_number = 2 if steps[0] == at else flag.signal_number
        return original(*args, **kwargs)

    stopped.optimizer.step = counted  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="stopped by SIGINT"):
        run(stopped, stop=flag, save=lambda: saved.append(stopped.state_dict()))
    resumed = make_fit(config, small_cohort)
    resumed.load_state_dict(saved[0])
    said = run(resumed)
    assert said == expected[-len(said) :]
    for (name, a), b in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


def test_the_best_weights_are_kept(study: Callable[..., StudyConfig], small_cohort: Path):
    fit = make_fit(study("training.epochs=4", "training.lr=0.3", "training.clip_norm=null"), small_cohort)
    run(fit, keep_best=True)
    assert fit.validation.measure() == pytest.approx(max(fit.state.curve), abs=1e-9)


def test_validation_r_is_the_mean_of_scipys(study: Callable[..., StudyConfig], small_cohort: Path):
    from scipy.stats import pearsonr

    fit = make_fit(study(), small_cohort)
    rows = torch.arange(128)
    predicted = predict_expression(fit.model, fit.examples, rows, batch_size=16)
    measured = UNIT(fit.examples.counts_main.numpy(), fit.examples.library.numpy())
    sections = [slice(0, 64), slice(64, 128)]
    r = [[pearsonr(predicted[own, g], measured[own, g]).statistic for g in range(12)] for own in sections]
    assert validate(fit.model, fit.examples, rows, study()) == pytest.approx(np.mean(r), abs=1e-5)


def test_no_gene_varies_over_the_validation_spots(study: Callable[..., StudyConfig], small_cohort: Path):
    fit = make_fit(study(), small_cohort)
    with pytest.raises(TrainingError, match=r"no gene varies .* set validation.rule=epochs"):
        validate(fit.model, fit.examples, torch.tensor([3]), study())


@settings(deadline=None, max_examples=50)
@given(
    epochs=st.integers(1, 40),
    steps=st.integers(1, 50),
    warmup=st.floats(0, 10),
    schedule=st.sampled_from(["cosine", "constant"]),
)
def test_the_learning_rate_warms_up_and_never_leaves_its_bounds(epochs: int, steps: int, warmup: float, schedule: str):
    fit = Fit.__new__(Fit)
    fit.training = TrainingConfig(epochs=epochs, warmup_epochs=warmup, schedule=schedule, lr=1.0)
    fit.steps_per_epoch = steps
    rates = [fit.learning_rate(epoch, step) for epoch in range(epochs) for step in range(steps)]
    assert all(0 < rate <= 1 + 1e-9 for rate in rates)
    peak = int(np.argmax(rates))
    assert all(np.diff(rates[: peak + 1]) >= -1e-12)
    assert all(np.diff(rates[peak:]) <= 1e-12)
    assert math.isclose(max(rates), 1.0, rel_tol=0.5)


def test_mixing_trains_on_other_targets_and_still_learns(study: Callable[..., StudyConfig], small_cohort: Path):
    mixed, plain = (make_fit(study("training.epochs=12", f"training.mixup={alpha}"), small_cohort) for alpha in (1.0, 0))
    losses = [[values["train/main"] for values in run(fit)] for fit in (mixed, plain)]
    assert losses[0] != losses[1]
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert mixed.state.curve[-1] > 0.4


def test_several_processes_do_not_mix(study: Callable[..., StudyConfig], small_cohort: Path, tmp_path: Path):
    cohort, config = PreparedCohort.open(small_cohort), study("training.mixup=0.2")
    fold = study_folds(config, cohort)[0]
    data = SpotDataset(cohort, fold.train_sections, PANEL, window_px=24)
    NetworkTraining(config, fold, data, UNIT, tmp_path)
    with pytest.raises(TrainingError, match=r"training.mixup .* 2 processes share; .* set training.mixup=0"):
        NetworkTraining(config, fold, data, UNIT, tmp_path, processes=Processes(0, 2))


def test_optimizers(study: Callable[..., StudyConfig], small_cohort: Path):
    fit = make_fit(study(), small_cohort)
    assert isinstance(make_optimizer(fit.model, TrainingConfig(optimizer="sgd")), torch.optim.SGD)
    adam = make_optimizer(fit.model, TrainingConfig(weight_decay=0.1))
    assert isinstance(adam, torch.optim.AdamW)
    assert sorted(group["weight_decay"] for group in adam.param_groups) == [0.0, 0.1]


def test_epochs_are_chosen_where_every_curve_reaches():
    assert choose_epoch([[0.1, 0.3, 0.2]]) == 2
    assert choose_epoch([[0.1, 0.3, 0.9], [0.4, 0.1]]) == 1
    assert choose_epoch([[0.2, 0.2]]) == 1
    assert FitState(curve=[0.1, 0.4, 0.4]).best_epoch == 2


def test_predictions_ignore_counts_batches_and_symmetry_of_the_patch(study: Callable[..., StudyConfig], small_cohort: Path):
    fit = make_fit(study(), small_cohort)
    rows = torch.arange(128)
    one = predict_expression(fit.model, fit.examples, rows, batch_size=128, symmetries=True)
    fit.examples.counts_main.zero_()
    fit.examples.library.mul_(7)
    other = predict_expression(fit.model, fit.examples, rows.flip(0), batch_size=10, symmetries=True)
    np.testing.assert_allclose(one, other[::-1], atol=1e-5)


def test_a_predictions_file_names_spots_genes_and_units(study: Callable[..., StudyConfig], small_cohort: Path):
    fit = make_fit(study(), small_cohort)
    predicted = predict_expression(fit.model, fit.examples, torch.arange(128), batch_size=64)
    adata = predictions_anndata(predicted, fit.examples, PANEL, UNIT, predicted.mean(axis=0), {"cohort": "small"})
    assert adata.obs_names[0] == "b1:0x0"
    assert adata.var_names.tolist() == list(PANEL.main)
    np.testing.assert_array_equal(adata.obsm["spatial"][0], [20.0, 20.0])
    assert adata.uns["stexpr"] == '{"cohort": "small"}'


def test_devices_and_precision():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with autocast(torch.device("cpu"), "bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    with autocast(torch.device("cpu"), "auto"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
