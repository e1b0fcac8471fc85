"""Late fusion: an average of two predictions, and a model like any other afterwards."""

from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from exported_models import save
from stexpr.config import FusionConfig, NetworkConfig
from stexpr.errors import ModelError
from stexpr.models.components import VIEWS, component_axes, fit_view, gaussians, joined
from stexpr.models.export import load_model
from stexpr.models.fusion import DescriptorRegression


def regression_of(model: Any, make_batch: Any, share: float = 0.25) -> DescriptorRegression:
    batch = make_batch(40, seed=5)
    targets = model.main_objective.target(batch.counts_main, batch.library).numpy()
    axes = component_axes(targets, 3)
    made = DescriptorRegression(32, (4, 8, 16), n_landmarks=40, axes=torch.from_numpy(axes).float(), share=share)
    described = {group: values.numpy() for group, values in made.descriptors(batch.patches).items()}
    groups = np.arange(40) % 4
    made.fill([fit_view(view.kernel, joined(described, view), targets @ axes.T, groups) for view in VIEWS])
    return made


@pytest.fixture
def fused(make_model, make_batch):
    model = make_model().eval()
    model.fuse(regression_of(model, make_batch))
    return model


@pytest.mark.parametrize("rank", [None, 2])
def test_a_fused_model_predicts_the_average(make_model, make_batch, rank):
    factors = None if rank is None else torch.tensor([[1.0, 0.5, 0.0, 0.2, -0.3], [0.0, 1.0, -2.0, 0.1, 0.0]])
    model, patches = make_model(rank=rank, components=factors).eval(), make_batch(6).patches
    regression = regression_of(model, make_batch)
    with torch.inference_mode():
        alone = model.predict(patches, symmetries=True)
        beside = model.main_objective.expression(regression(patches) @ regression.axes)
        model.fuse(regression)
        together = model.predict(patches, symmetries=True)
        features, components = model.features(patches), regression(patches)
        auxiliary = model(patches).auxiliary
    torch.testing.assert_close(together, 0.75 * alone + 0.25 * beside, rtol=1e-4, atol=1e-5)
    assert features.shape == (6, model.n_features)
    torch.testing.assert_close(features[:, -3:], components)
    assert auxiliary.shape == (6, 9)


def test_the_regression_is_what_was_fitted(make_model, make_batch):
    model = make_model()
    batch, made = make_batch(40, seed=5), regression_of(model, make_batch)
    targets = model.main_objective.target(batch.counts_main, batch.library).numpy()
    described = {group: values.numpy() for group, values in made.descriptors(batch.patches).items()}
    components = targets @ component_axes(targets, 3).T
    parts = []
    for view in VIEWS:
        own = joined(described, view)
        fitted = fit_view(view.kernel, own, components, np.arange(40) % 4)
        phi = (own - fitted.center) / fitted.scale
        phi = gaussians(phi, fitted.landmarks) if len(fitted.landmarks) else phi
        parts.append(phi @ fitted.weight + fitted.bias)
    np.testing.assert_allclose(made(batch.patches).numpy(), np.mean(parts, axis=0), atol=1e-4)


def test_a_fused_model_is_saved_and_loaded_like_any_other(fused, make_batch, tmp_path):
    patches = make_batch(6).patches
    save(tmp_path, fused)
    loaded = load_model(tmp_path)
    assert loaded.n_features == fused.n_features
    for symmetries in (False, True):
        output = loaded(patches, symmetries=symmetries)
        with torch.inference_mode():
            torch.testing.assert_close(output.expression, fused.predict(patches, symmetries=symmetries), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(loaded.expression_of(output.features), output.expression, rtol=1e-4, atol=1e-5)
    again = tmp_path / "again"
    loaded.save(again)
    torch.testing.assert_close(load_model(again)(patches).expression, loaded(patches).expression, rtol=0, atol=0)


@pytest.mark.parametrize("symmetries", [False, True])
def test_a_fused_model_is_written_as_onnx(fused, make_batch, tmp_path, symmetries):
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    import onnxruntime

    from stexpr.models.export.onnx import save_onnx

    save(tmp_path / "model", fused)
    loaded = load_model(tmp_path / "model")
    report = save_onnx(loaded, tmp_path / "model.onnx", symmetries=symmetries, seconds=0.0)
    patches = make_batch(3).patches
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    _, expression = session.run(["features", "expression"], {"patches": patches.contiguous().numpy()})
    expected = loaded(patches, symmetries=symmetries).expression
    np.testing.assert_allclose(expression, expected.numpy(), rtol=1e-3, atol=1e-4)


def test_what_cannot_be_fused_is_refused(fused, make_model, make_batch):
    with pytest.raises(ModelError, match="fused already"):
        fused.fuse(regression_of(fused, make_batch))
    with pytest.raises(AssertionError, match="not trained further"):
        fused.loss(make_batch())
    other = make_model(loss="negative_binomial")
    with pytest.raises(ModelError, match="standardized expression"):
        other.fuse(regression_of(make_model(), make_batch))
    with pytest.raises(ValidationError, match="negative binomial does not predict"):
        NetworkConfig(loss="negative_binomial", fusion=FusionConfig())


def test_a_tampered_number_of_landmarks_is_refused(fused, tmp_path):
    import json

    save(tmp_path, fused)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    for value in (0, 10**9, 39):
        path.write_text(json.dumps({**config, "fusion": {**config["fusion"], "n_landmarks": value}}))
        with pytest.raises(ModelError):
            load_model(tmp_path)


def test_the_label_names_what_was_fused():
    assert NetworkConfig(fusion=FusionConfig()).label == "resnet18 + aux + descriptors"
    assert NetworkConfig(fusion=FusionConfig(share=1.0)).label == "descriptors alone"
