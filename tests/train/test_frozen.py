"""A frozen encoder in a study: what it sees, that its exported network is the regression, its place on a board."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pytest
import timm
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from timm.models._hub import save_for_hf

from stexpr.config import BASELINES, FrozenConfig, StudyConfig
from stexpr.data.store import PreparedCohort
from stexpr.errors import DataError, ModelError
from stexpr.evaluate.audit.report import audit
from stexpr.evaluate.leaderboard import build_leaderboard
from stexpr.evaluate.records import read_record
from stexpr.models.export import load_model
from stexpr.train.evaluate import evaluate_runs
from stexpr.train.frozen import view_of
from stexpr.train.study import run_study
from stexpr.train.sweep.probe import estimate_seconds
from stexpr.train.sweep.run import run_sweep
from sweeps import HereEngine, plan_of

Study = Callable[..., StudyConfig]
COLORS = {"mean": (0.7, 0.5, 0.6), "std": (0.2, 0.2, 0.2)}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network of timm in a folder, with colors of its own."""
    torch.manual_seed(5)
    overlay = {**COLORS, "input_size": (3, 32, 32)}
    folder = tmp_path_factory.mktemp("encoder") / "mine"
    save_for_hf(
        timm.create_model("test_resnet", num_classes=0, pretrained_cfg_overlay=overlay), folder, safe_serialization=True
    )
    return folder


def frozen(encoder: Path, **keys: Any) -> list[str]:
    words = {"kind": "frozen", "backbone": f"local-dir:{encoder}", "components": 8, **keys}
    return [f"model={{{', '.join(f'{key}: {value}' for key, value in words.items())}}}", "folds=[0]"]


def patches_of(cohort: Path, section: str, side: int) -> torch.Tensor:
    return torch.from_numpy(PreparedCohort.open(cohort).patches(section, side)).permute(0, 3, 1, 2)


def test_a_frozen_encoder_from_patches_to_the_board(
    study: Study, encoder: Path, small_cohort: Path, tmp_path: Path, baselines: Callable[[Path], None]
):
    baselines(tmp_path / "runs")
    said: list[str] = []
    config = study(*frozen(encoder))
    runs = run_study(config, tmp_path / "runs", report=said.append)
    assert len(runs) == 1 + len(BASELINES)
    record = read_record(runs[0])
    assert record.model_label == "mine + ridge of 8"
    assert (record.kind, record.epochs, record.fold.validation) == ("network", None, "none")
    assert record.parameters is not None
    assert str(encoder) not in (runs[0] / "record.json").read_text()
    assert any("sees the whole window" in note for note in record.notes)
    assert any("ridge regression on 8 components" in note and "alpha" in note for note in record.notes)
    r = record.values["pearson"].value
    assert r is not None
    assert r > 0.2  # expression follows color here
    assert "as recorded" in next(evaluate_runs(runs[0]))
    board = build_leaderboard(tmp_path / "runs")
    assert "mine + ridge of 8" in board.markdown()
    assert "no network on this board" in board.markdown()  # whose number of epochs was chosen
    said.clear()
    assert run_study(config, tmp_path / "runs", report=said.append) == runs
    assert "done before" in said[0]


@pytest.mark.parametrize("symmetries", [True, False])
def test_the_exported_network_is_the_regression(
    study: Study, encoder: Path, small_cohort: Path, tmp_path: Path, baselines: Callable[[Path], None], symmetries: bool
):
    baselines(tmp_path / "runs")
    asked = [*frozen(encoder, alphas="[10.0]", components="null"), f"input.test_symmetries={symmetries}"]
    run = run_study(study(*asked), tmp_path / "runs")[0]
    loaded = load_model(run / "model")
    predicted = anndata.read_h5ad(run / "predictions.h5ad")
    section = predicted.obs["section"].iloc[0]
    with torch.inference_mode():
        again = loaded.model.predict(patches_of(small_cohort, section, 24), symmetries=symmetries).numpy()
        np.testing.assert_allclose(again, predicted[predicted.obs["section"] == section].X, atol=1e-5)
        if symmetries:
            return
        network = timm.create_model(f"local-dir:{encoder}", num_classes=0, pretrained=True).eval()
        features = {}
        for name in PreparedCohort.open(small_cohort).sections:
            images = torch.nn.functional.interpolate(
                patches_of(small_cohort, name, 24) / 255, size=(32, 32), mode="bilinear", antialias=True, align_corners=False
            )
            mean, sd = (torch.tensor(COLORS[key]).view(3, 1, 1) for key in ("mean", "std"))
            features[name] = network((images - mean) / sd).numpy().astype(float)
    train = [name for name in features if name != section]
    column = [PreparedCohort.open(small_cohort).genes.index(gene) for gene in predicted.var_names]
    counts = {name: PreparedCohort.open(small_cohort).counts(name).toarray() for name in train}
    expression = [np.log1p(c[:, column] / c.sum(axis=1, keepdims=True) * 1e4) for c in counts.values()]
    oracle = make_pipeline(StandardScaler(), Ridge(10.0))
    oracle.fit(np.concatenate([features[name] for name in train]), np.concatenate(expression))
    np.testing.assert_allclose(again, oracle.predict(features[section]), atol=1e-4)


def test_the_weights_make_the_run_wherever_they_lie(study: Study, encoder: Path, tmp_path: Path):
    fold = {"index": 0}
    here = study(*frozen(encoder)).run_hash("cohort", fold)
    moved = tmp_path / "elsewhere" / "mine"
    moved.parent.mkdir()
    moved.symlink_to(encoder, target_is_directory=True)
    assert study(*frozen(moved)).run_hash("cohort", fold) == here
    other = tmp_path / "other" / "mine"
    torch.manual_seed(6)
    network = timm.create_model("test_resnet", num_classes=0, pretrained_cfg_overlay={"input_size": (3, 32, 32)})
    save_for_hf(network, other, safe_serialization=True)
    assert study(*frozen(other)).run_hash("cohort", fold) != here
    assert study(*frozen(other, pretrained="false")).run_hash("cohort", fold) != study(*frozen(other)).run_hash("cohort", fold)
    path = other / "model.safetensors"
    by_file = study("model={kind: network, backbone: test_resnet}", f"model.weights={path}")
    assert by_file.model.label == "test_resnet of model.safetensors + aux"
    first = by_file.run_hash("cohort", fold)
    path.write_bytes(path.read_bytes() + b" ")
    assert by_file.run_hash("cohort", fold) != first
    with pytest.raises(DataError, match=r"no folder .*gone, which model\.backbone names"):
        study(*frozen(tmp_path / "gone")).run_hash("cohort", fold)
    path.unlink()
    with pytest.raises(DataError, match=r"model\.safetensors cannot be read"):
        by_file.run_hash("cohort", fold)


@pytest.mark.parametrize(
    ("keys", "window_px", "mpp", "seen", "words"),
    [
        ({"backbone": "uni"}, 448, 0.5, (224, 224), "the 224 px (112 um) about the spot, resampled from 0.5 to 0.5 um/px"),
        ({"backbone": "uni"}, 448, 0.25, (448, 224), "the 448 px (112 um) about the spot, resampled from 0.25 to 0.5 um/px"),
        ({"backbone": "uni"}, 64, 4.36, (26, 224), "the 26 px (113 um) about the spot, resampled from 4.36 to 0.506 um/px"),
        ({"backbone": "uni"}, 100, 0.5, (100, 224), "the window holds 50: it sees the whole window, magnified to 0.223 um/px"),
        ({"backbone": "uni", "mpp": 1.0}, 448, 0.5, (448, 224), "resampled from 0.5 to 1 um/px"),
        ({"backbone": "uni", "mpp": "window"}, 64, 4.36, (64, 224), "the whole window, 279 um at 1.25 um/px"),
        ({"backbone": "resnet18"}, 64, 4.36, (64, 224), "the whole window, 279 um at 1.25 um/px"),
        ({"backbone": "resnet18", "mpp": 2}, 112, 4.0, (112, 224), "resampled from 4 to 2 um/px"),
        ({"backbone": "tiny"}, 64, 4.36, (64, 64), "the whole window, 279 um at 4.36 um/px"),
    ],
)
def test_what_an_encoder_sees_is_decided_and_said(keys, window_px, mpp, seen, words):
    view = view_of(FrozenConfig(**keys), window_px=window_px, mpp=mpp)
    assert (view.window_px, view.input_px) == seen
    assert words in view.note


def test_a_resolution_without_an_input_size_is_refused():
    with pytest.raises(ModelError, match=r"model\.mpp = 1, but the backbone 'tiny' has no input size"):
        view_of(FrozenConfig(backbone="tiny", mpp=1.0), window_px=64, mpp=0.5)


def test_an_audit_compares_the_weights_where_they_still_are(
    study: Study, encoder: Path, tmp_path: Path, baselines: Callable[[Path], None]
):
    baselines(tmp_path / "runs")
    moving = shutil.copytree(encoder, tmp_path / "moving" / "mine")
    run = run_study(study(*frozen(moving)), tmp_path / "runs")[0]

    def provenance() -> Any:
        return next(finding for finding in audit(run).findings if finding.check == "provenance")

    assert provenance().severity == "passed"
    (moving / "model.safetensors").write_bytes(b"another")
    assert provenance().severity == "flag"
    shutil.rmtree(moving)
    assert "not done: there is no folder" in provenance().sentence
    assert not audit(run).leaks


def test_a_crop_is_what_the_exported_network_takes(study: Study, encoder: Path, tmp_path: Path, baselines: Any):
    baselines(tmp_path / "runs")
    mpp = study().cohort and PreparedCohort.open(study().cohort).mpp
    run = run_study(study(*frozen(encoder, mpp=mpp / 2)), tmp_path / "runs")[0]
    loaded = load_model(run / "model")
    assert (loaded.preprocessing.window_px, loaded.preprocessing.input_px) == (16, 32)
    assert f"at {mpp / 2:g} um/px" in read_record(run).model_label


def test_a_sweep_of_frozen_encoders_is_planned_estimated_and_run(encoder: Path, small_cohort: Path, tmp_path: Path):
    grid = {"model.components": [2, 4], "model.backbone": [f"local-dir:{encoder}"], "model.kind": ["frozen"]}
    plan = plan_of(tmp_path, small_cohort, overrides={"folds": [0], "input.test_symmetries": False}, grid=grid)
    ours = [run for run in plan.runs if run.is_network]
    assert len(ours) == 2
    assert "2 of networks in 2 studies" in plan.summary()
    assert all(seconds > 0 for seconds in estimate_seconds(ours, threads=1))
    result = run_sweep(plan, tmp_path / "runs", HereEngine())
    assert result.is_complete
    labels = {read_record(tmp_path / "runs" / run.key).model_label for run in ours}
    assert labels == {"mine + ridge of 2", "mine + ridge of 4"}


def test_heads_are_trained_on_a_frozen_backbone(study: Study, encoder: Path, tmp_path: Path, baselines: Callable[[Path], None]):
    baselines(tmp_path / "runs")
    asked = (f"model.backbone=local-dir:{encoder}", "model.pretrained=true", "model.freeze=all", "folds=[0]")
    run = run_study(study(*asked), tmp_path / "runs")[0]
    assert read_record(run).model_label == "mine + aux pretrained frozen"
    model = load_model(run / "model").model
    network = timm.create_model(f"local-dir:{encoder}", num_classes=0, pretrained=True)
    for key, value in network.state_dict().items():
        assert model.backbone.network.state_dict()[key].equal(value), key
    assert model.main_head.bias.abs().sum() > 0
