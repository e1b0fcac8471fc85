"""A study whose network is fused with a regression on descriptors, from patches to the exported model."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from stexpr.config import FusionConfig, StudyConfig
from stexpr.data.datasets import SpotDataset
from stexpr.data.panels import fold_panel
from stexpr.data.stain import STANDARD
from stexpr.evaluate.records import read_predictions, read_record
from stexpr.models.export import load_model
from stexpr.panel import ExpressionTransform
from stexpr.train.checkpoint import InterruptedTrainingError, StopFlag
from stexpr.train.fused import FusedTraining, left_out_together
from stexpr.train.network import build_network
from stexpr.train.spots import SpotStudy
from stexpr.train.study import run_study

Study = Callable[..., StudyConfig]
FUSED = ("folds=[0]", "model.fusion={radii_px: [4, 8, 12], components: 5}", "input.colors=standardized")


def opened(config: StudyConfig) -> tuple[SpotStudy, SpotDataset, ExpressionTransform]:
    own = SpotStudy(config)
    fold = own.folds[0]
    panel = fold_panel(config.protocol.panel, own.cohort, fold)
    dataset = SpotDataset(own.cohort, fold.train_sections, panel, window_px=24)
    return own, dataset, ExpressionTransform(n_genes=len(own.cohort.genes))


def test_a_fused_study_from_patches_to_the_exported_model(study: Study, baselines: Callable, tmp_path: Path):
    config = study(*FUSED)
    baselines(tmp_path)
    folder = run_study(config, tmp_path)[0]
    record = read_record(folder)
    assert record.model_label == "tiny + aux + descriptors"
    assert record.settings["input"]["colors"] == "standardized"
    predictions = read_predictions(folder)
    own = SpotStudy(config)
    cohort, sections = own.cohort.colored("standardized"), own.folds[0].test_sections
    model = load_model(folder / "model")
    assert (model.preprocessing.stain, model.release.stain_reference) == ("standardized", STANDARD.describe())
    assert model.n_features == model.model.backbone.n_features + 5
    patches = np.concatenate([cohort.patches(section, 24) for section in sections])
    again = model(torch.from_numpy(patches).permute(0, 3, 1, 2))
    np.testing.assert_allclose(again.expression.numpy(), predictions.X, atol=1e-4)
    plain = model(torch.from_numpy(np.concatenate([own.cohort.patches(s, 24) for s in sections])).permute(0, 3, 1, 2))
    assert not np.allclose(plain.expression.numpy(), predictions.X, atol=1e-2)  # colors were standardized


def test_an_inner_training_is_measured_with_what_is_fused(study: Study, baselines: Callable, tmp_path: Path):
    """With the regression alone every epoch of the network scores the same."""
    baselines(tmp_path)
    config = study("folds=[0]", "model.fusion={radii_px: [4, 8], components: 3, share: 1.0}")
    folder = run_study(config, tmp_path)[0]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    inner = [line["val/pearson"] for line in lines if line["phase"].startswith("inner")]
    assert len(inner) > 1
    assert len({round(value, 6) for value in inner}) == len({line["phase"] for line in lines if line["phase"] != "final"})


def test_a_fit_sees_nothing_but_its_rows(study: Study):
    config = study(*FUSED)
    own, dataset, transform = opened(config)
    rows = dataset.rows(own.folds[0].inner[0].train)
    others = np.setdiff1d(np.arange(len(dataset)), rows.numpy())
    assert len(others)
    fits = []
    for change in (False, True):
        if change:
            dataset.counts_main[others] += 50
            dataset._columns.tensors[3][others] = 7  # the patches of others
        model = build_network(config, dataset, rows, transform)
        fits.append(FusedTraining(config.model.fusion, dataset, seed=0).fitted(model, rows))  # type: ignore[union-attr, arg-type]
    for (name, one), (_, other) in zip(fits[0].state_dict().items(), fits[1].state_dict().items(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)


def test_one_section_is_divided_into_slabs_and_patches_on_disk_give_the_same(study: Study):
    config = study(*FUSED)
    own, _, transform = opened(config)
    section = own.folds[0].train_sections[0]
    fusion = FusionConfig(radii_px=(4, 8), components=3)
    fits = []
    for in_memory in (True, False):
        one = SpotDataset(
            own.cohort,
            [section],
            fold_panel(config.protocol.panel, own.cohort, own.folds[0]),
            window_px=24,
            in_memory=in_memory,
        )
        rows = torch.arange(len(one))
        model = build_network(config, one, rows, transform)
        training = FusedTraining(fusion, one, seed=0)
        assert sorted(set(left_out_together(one.spots))) == ["0", "1", "2", "3"]
        fits.append(training.expression(training.fitted(model, rows), model, rows))
    np.testing.assert_array_equal(*fits)


def test_the_share_is_chosen_over_the_inner_trainings_at_the_epoch_taken(study: Study):
    config = study("folds=[0]", "model.fusion={}")
    _, dataset, _ = opened(config)
    fused = FusedTraining(FusionConfig(), dataset, seed=0)
    assert fused.chosen_share(1) == 0.5
    truth = np.linspace(0, 1, 6, dtype=np.float32).reshape(6, 1)
    away = truth.max() - truth

    def score(predicted: np.ndarray) -> float:
        return -float(np.abs(predicted - 0.7 * truth - 0.3 * away).max())

    assert fused.best(0, score, away, truth) == pytest.approx(-0.1, abs=1e-6)  # 0.6 and 0.8 are equally far from 0.7
    fused.best(1, score, truth, away)
    fused.best(0, score, truth, truth)
    assert fused.chosen_share(1) in (0.4, 0.6)
    assert FusedTraining(FusionConfig(share=0.3), dataset, seed=0).chosen_share(5) == 0.3


def test_a_fused_training_that_is_stopped_goes_on_as_if_it_had_not_been(study: Study, baselines: Callable, tmp_path: Path):
    config = study("folds=[0]", "model.fusion={radii_px: [4, 8], components: 3}")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for runs in (whole, parts):
        baselines(runs)
    once = run_study(config, whole)[0]
    own = SpotStudy(config)
    fold = own.fold(config, 0)

    class StopAt(StopFlag):
        """Raises at the n-th question, as a signal would."""

        asked = 0

        def agree(self, processes: object) -> None:
            self.asked += 1
            if self.asked == self.at:
                self.signal_number = 15

    for at in (2, 9, 14):
        stop = StopAt()
        stop.at = at  # type: ignore[attr-defined]
        with pytest.raises(InterruptedTrainingError):
            own.run(config, fold, parts, stop=stop)
    again = run_study(config, parts)[0]
    assert (again / "metrics.jsonl").read_text() == (once / "metrics.jsonl").read_text()
    np.testing.assert_array_equal(read_predictions(again).X, read_predictions(once).X)
    notes = read_record(again).notes
    assert notes == read_record(once).notes
    assert any("share of" in note for note in notes)


def test_another_share_is_another_run(study: Study):
    hashes = {
        replaced.run_hash("c", {})
        for replaced in (study(), *(study(f"model.fusion={{share: {share}}}") for share in (0.5, 0.7)), study(FUSED[2]))
    }
    assert len(hashes) == 4
