"""Pre-training comes before all trainings of a fold, sees its training sections alone and resumes at any step."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stexpr.config import StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.splits import Fold
from stexpr.data.store import PreparedCohort
from stexpr.errors import ConfigError, TrainingError
from stexpr.evaluate.records import read_record
from stexpr.models.selfsupervised import SimSiam
from stexpr.panel import ExpressionTransform, GenePanel
from stexpr.train.checkpoint import InterruptedTrainingError, StopFlag
from stexpr.train.distributed import Processes
from stexpr.train.loop import Fit
from stexpr.train.network import NetworkTraining
from stexpr.train.pretrain import PHASE, Pretrained, pretraining
from stexpr.train.spots import study_folds
from stexpr.train.study import run_study
from stexpr.train.tracking import MetricsFile

GENES = tuple(f"G{i:02d}" for i in range(12))
PANEL = GenePanel(main=GENES, auxiliary=(), rule="list", scope="training", min_detection=0.0)
PRETRAIN = "training.pretrain={epochs: 2, batch_size: 48}"
Study = Callable[..., StudyConfig]


class StopAt(StopFlag):
    """A signal that arrives in a given step."""

    def __init__(self, step: int | None) -> None:
        super().__init__()
        self.left = step

    def agree(self, processes: Processes) -> None:
        if self.left is not None:
            self.left -= 1
            self.signal_number = 15 if self.left == 0 else None


def spots(cohort: Path, sections: tuple[str, ...], window_px: int = 32) -> SpotDataset:
    return SpotDataset(PreparedCohort.open(cohort), sections, PANEL, window_px=window_px)


def first_fold(config: StudyConfig) -> Fold:
    return study_folds(config, PreparedCohort.open(config.cohort))[0]


def made(config: StudyConfig, data: SpotDataset, fold: Fold) -> Fit[SimSiam]:
    return pretraining(config, fold, data, window_px=24)


def ran(fit: Fit[SimSiam]) -> list[dict[str, float | int]]:
    said: list[dict[str, float | int]] = []
    fit.run(keep_best=False, stop=StopFlag(), on_epoch=said.append, save=lambda: None)
    return said


def test_the_loss_falls_and_nothing_collapses(study: Study, small_cohort: Path):
    config = study("training.pretrain={epochs: 10, batch_size: 32}")
    fit = made(config, spots(small_cohort, ("b1", "c1", "c2")), first_fold(config))
    said = ran(fit)
    assert said[-1]["train/loss"] < said[0]["train/loss"] - 0.2
    assert min(values["train/spread"] for values in said) > 0.4
    note = Pretrained.of(fit).note(config.training.pretrain)
    assert note.endswith(f"training spots; projections spread to {float(fit.model.spread):.3g} of what they could")


BELOW = float(np.nextafter(np.float32(0.1), np.float32(0)))


@pytest.mark.parametrize(
    ("spread", "said"),
    [
        (0.873, "; projections spread to 0.873 of what they could"),
        (0.1, "; projections spread to 0.1 of what they could"),
        (BELOW, "; it collapsed: projections spread to 0.1 of what they could, less than 0.1"),
        (0.0437, "; it collapsed: projections spread to 0.0437 of what they could, less than 0.1"),
        (0.0, "; it collapsed: projections spread to 0 of what they could, less than 0.1"),
        (math.nan, "; it collapsed: projections spread to nan of what they could, less than 0.1"),
    ],
)
def test_the_spread_is_said_and_below_a_tenth_that_it_collapsed(study: Study, small_cohort: Path, spread: float, said: str):
    config = study(PRETRAIN)
    fit = made(config, spots(small_cohort, ("b1", "c1", "c2")), first_fold(config))
    fit.model.spread.fill_(spread)
    note = Pretrained.of(fit).note(config.training.pretrain)
    assert note == (f"pre-trained without expression (SimSiam, 2 epochs) on windows anywhere around 192 training spots{said}")


def test_a_collapse_is_seen_however_few_the_steps(study: Study, small_cohort: Path):
    config = study("training.pretrain={epochs: 1, batch_size: 96}")
    fit = made(config, spots(small_cohort, ("b1", "c1", "c2")), first_fold(config))
    torch.nn.init.zeros_(fit.model.projector[0].weight)  # so that all projections are one
    ran(fit)
    assert "it collapsed: projections spread to 0 of" in Pretrained.of(fit).note(config.training.pretrain)


def test_a_test_section_is_never_seen_whatever_the_dataset_holds(study: Study, small_cohort: Path):
    config = study(PRETRAIN)
    fold = first_fold(config)
    assert fold.train_sections == ("b1", "c1", "c2")
    all_sections = spots(small_cohort, ("b1", "a1", "c1", "c2"))
    fits = [made(config, spots(small_cohort, fold.train_sections), fold), made(config, all_sections, fold)]
    assert not any(name.startswith("a1:") for name in all_sections.names(fits[1].train_rows))
    assert ran(fits[0]) == ran(fits[1])
    weights = [Pretrained.of(fit).weights for fit in fits]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def train(config: StudyConfig, folder: Path, stop: int | None = None) -> NetworkTraining:
    """Train fold 0, from its checkpoint where there is one."""
    fold = replace(first_fold(config), inner=first_fold(config).inner[:1])
    folder.mkdir(exist_ok=True)
    training = NetworkTraining(
        config,
        fold,
        spots(config.cohort, fold.train_sections, 24),
        ExpressionTransform(),
        folder,
        tissue=lambda: spots(config.cohort, fold.train_sections),
    )
    resumed = training.resume()
    metrics = MetricsFile(folder / "metrics.jsonl", int(resumed["lines"]) if resumed else 0)
    training.result = training.run(metrics, [metrics], StopAt(stop), resumed).model.state_dict()
    return training


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[StudyConfig], tuple[Path, NetworkTraining]]:
    """Train once without a stop."""
    folder = tmp_path_factory.mktemp("whole")
    done: list[NetworkTraining] = []

    def once(config: StudyConfig) -> tuple[Path, NetworkTraining]:
        if not done:
            done.append(train(config, folder))
        return folder, done[0]

    return once


@pytest.mark.parametrize("at", [1, 4, 6, 8, 9, 17])  # 4 steps an epoch, 2 epochs; then 1 inner epoch of 4 or 8, the final one
def test_stopping_at_any_step_changes_nothing(study: Study, tmp_path: Path, whole, at: int):
    config = study(PRETRAIN, "training.epochs=1")
    folder, expected = whole(config)
    with pytest.raises(InterruptedTrainingError, match="stopped by SIGTERM"):
        train(config, tmp_path, at)
    again = train(config, tmp_path)
    assert (folder / "metrics.jsonl").read_text() == (tmp_path / "metrics.jsonl").read_text()
    assert all(torch.equal(expected.result[key], again.result[key]) for key in expected.result)
    assert again.seconds > 0


def test_every_training_starts_from_what_was_learned(study: Study, whole):
    _, training = whole(study(PRETRAIN, "training.epochs=1"))
    learned = training.pretrained.weights
    for index in range(training.n_phases):
        started = training.fit(index).model.backbone.state_dict()
        assert all(torch.equal(started[key], learned[key]) for key in learned)
    untrained = training.fit(PHASE).model.backbone.state_dict()
    assert not all(torch.equal(untrained[key], learned[key]) for key in learned)


def test_metrics_label_and_record_tell_of_it(study: Study, tmp_path: Path, baselines: Callable[[Path], None]):
    baselines(tmp_path)
    run = run_study(study("folds=[0]", PRETRAIN, "training.epochs=1", "model.freeze=all"), tmp_path)[0]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in lines] == ["self-supervised"] * 2 + ["inner 0", "final"]
    assert {"epoch", "train/loss", "train/spread", "train/lr"} < lines[0].keys()
    record = read_record(run)
    assert record.model_label == "tiny + aux frozen, SimSiam"
    assert record.settings["training"]["pretrain"]["epochs"] == 2
    (note,) = [one for one in record.notes if one.startswith("pre-trained without expression (SimSiam, 2 epochs)")]
    assert re.search(r"192 training spots; projections spread to [\d.]+ of what they could$", note)


def test_where_patches_are_read_changes_nothing_and_where_windows_lie_does(
    study: Study, tmp_path: Path, baselines: Callable[[Path], None]
):
    def losses(name: str, *overrides: str) -> str:
        baselines(tmp_path / name)
        run = run_study(study("folds=[0]", "training.epochs=1", *overrides), tmp_path / name)[0]
        return (run / "metrics.jsonl").read_text()

    on_disk = losses("disk", PRETRAIN, "runtime.patches_in_memory=false")
    assert losses("memory", PRETRAIN) == on_disk
    assert losses("spots", "training.pretrain={epochs: 2, batch_size: 48, source: spots}") != on_disk


def test_several_processes_cannot_share_it(study: Study, small_cohort: Path):
    config = study(PRETRAIN)
    with pytest.raises(TrainingError, match=r"2 processes cannot share self-supervised .* set training.pretrain=null"):
        pretraining(config, first_fold(config), spots(small_cohort, ("b1",)), window_px=24, processes=Processes(0, 2))


def test_a_few_spots_are_too_few(study: Study, small_cohort: Path):
    config = study(PRETRAIN)
    data = spots(small_cohort, ("b1", "c1", "c2"))
    data.rows = lambda selection: torch.arange(3)  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match=r"fold 0 has 3 training spots, too few for training\.pretrain; set it"):
        made(config, data, first_fold(config))


def test_only_networks_have_something_to_pretrain(study: Study):
    with pytest.raises(ConfigError, match=r"training.pretrain is for model.kind=network, not frozen; set it to null"):
        study(PRETRAIN, "model={kind: frozen, backbone: tiny, pretrained: false}")
