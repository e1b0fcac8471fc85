"""Studies under protocols other than the default one."""

from collections.abc import Callable
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from stexpr.config import StudyConfig
from stexpr.data.store import PreparedCohort
from stexpr.errors import ConfigError, ProtocolError
from stexpr.evaluate.records import read_record
from stexpr.models.export import load_model
from stexpr.train.study import run_study

Study = Callable[..., StudyConfig]


def weights(run: Path) -> dict[str, np.ndarray]:
    return load_file(run / "model" / "model.safetensors")


@pytest.mark.usefixtures("alone")
def test_shallow_spots_are_hidden_from_training_and_test_and_named(study: Study, tmp_path: Path, small_cohort: Path):
    cohort = PreparedCohort.open(small_cohort)
    least = int(np.median(cohort.spots("a1")["library"]))
    run = run_study(study("folds=[0]", f"protocol.min_counts={least}"), tmp_path / "runs")[0]
    tested = anndata.read_h5ad(run / "predictions.h5ad")
    kept = cohort.spots("a1")["library"] >= least
    assert list(tested.obs_names) == [f"a1:{barcode}" for barcode in kept.index[kept]]
    record = read_record(run)
    assert record.n.spots == kept.sum() < len(kept)
    assert any(f"fewer than {least} counts" in note and f"a1 {(~kept).sum()}" in note for note in record.notes)


@pytest.mark.usefixtures("alone")
def test_the_epoch_chosen_on_test_patients_is_a_leak_and_says_so(study: Study, tmp_path: Path):
    rule = ("protocol.validation.rule=test", "protocol.validation.refit=false")
    with pytest.raises(ConfigError, match=r"looks at test data \(the number of epochs .*: say so with protocol.leaky=true"):
        study(*rule)
    run = run_study(study("folds=[0]", *rule, "protocol.leaky=true"), tmp_path / "runs")[0]
    record = read_record(run)
    assert record.fold.validation == "test"
    assert record.protocol["leaky"] is True
    # the scaler is still that of the training spots
    other = run_study(study("folds=[0]"), tmp_path / "runs")[0]
    a, b = (anndata.read_h5ad(folder / "predictions.h5ad").var["training_mean"] for folder in (run, other))
    pd.testing.assert_series_equal(a, b)
    key = next(key for key in weights(run) if key.endswith("objective.mean") or key.endswith("main_objective.mean"))
    assert np.array_equal(weights(run)[key], weights(other)[key])


@pytest.mark.usefixtures("alone")
def test_a_preset_trains_its_way(study: Study, tmp_path: Path, small_cohort: Path):
    config = study("folds=[0]", "protocol=triplex", "protocol.panel.n_main=12", "protocol.panel.min_detection=0")
    run = run_study(config, tmp_path / "runs")[0]
    record = read_record(run)
    assert record.protocol["name"] == "triplex, changed in panel.min_detection, panel.n_main"
    tested = anndata.read_h5ad(run / "predictions.h5ad")
    raw = tested.layers["counts"].toarray()
    xy = tested.obs[["x_um", "y_um"]].to_numpy()
    around = np.abs(xy[:, None] - xy[None]).max(axis=2) <= 40  # the square lattice of the small cohort has this pitch
    smooth = around @ raw / around.sum(axis=1, keepdims=True)
    expected = np.log1p(smooth / smooth.sum(axis=1, keepdims=True) * 1e4)
    np.testing.assert_allclose(tested.layers["measured"], expected, rtol=1e-4)


@pytest.mark.usefixtures("alone")
def test_a_protocol_can_fix_window_and_stain(study: Study, tmp_path: Path):
    with pytest.raises(
        ConfigError, match=r"input.window_px = 24, but the protocol hest fixes a window of 20 um, which is 20 px"
    ):
        run_study(study("protocol.name=hest", "protocol.window_um=20"), tmp_path / "runs")
    fixed = study("folds=[0]", "protocol.window_um=20", "input.window_px=null")
    assert load_model(run_study(fixed, tmp_path / "runs")[0] / "model").preprocessing.window_px == 20
    with pytest.raises(ProtocolError, match=r"fixes the stain normalization macenko, the cohort .* has none; prepare it with"):
        run_study(study("protocol.stain=macenko"), tmp_path / "runs")
