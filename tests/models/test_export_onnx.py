"""ONNX files: what PyTorch gives, from onnxruntime, and nothing written where it is not."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from exported_models import PANEL, everything_beside, save, save_three
from stexpr.errors import DataError, ModelError
from stexpr.models.backbones import create_backbone
from stexpr.models.export import LoadedModel, load_model

onnx = pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
onnxruntime = pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")

from stexpr.models.export.onnx import onnx_latency, save_onnx  # noqa: E402  (after the check for the extra)
from stexpr.models.export.onnx_runtime import differences, open_session  # noqa: E402


def loaded(folder: Path, model: Any, **beside: Any) -> LoadedModel:
    save(folder, model, **beside)
    return load_model(folder)


def run(path: Path, patches: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["features", "expression"], {"patches": patches.contiguous().numpy()})


@pytest.mark.parametrize(
    ("config", "px"),
    [
        ({}, 32),
        ({"backbone": "mobilenetv3_small_050"}, 32),
        ({"backbone": "test_vit", "loss": "mse_pearson"}, 48),
        ({"backbone": "test_vit"}, 40),  # enlarged to 48
        ({"loss": "negative_binomial"}, 32),
    ],
    ids=str,
)
def test_the_file_gives_what_the_model_gives(tmp_path, make_model, make_batch, config, px):
    model = loaded(tmp_path / "model", make_model(**config, window_px=px))
    report = save_onnx(model, tmp_path / "model.onnx", seconds=0.0)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["model.onnx"]  # and no data beside it
    content = report.path.read_bytes()
    assert (report.sha256, report.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    onnx.checker.check_model(report.path, full_check=True)
    for n in (1, 5):
        patches = make_batch(n, window_px=px, seed=n).patches
        output = model(patches)
        for ours, theirs in zip(run(report.path, patches), (output.features, output.expression), strict=True):
            np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-4, atol=1e-5)
    assert set(report.difference) == {"features", "expression"}
    assert all(0 <= value < 1e-3 for value in report.difference.values())
    assert report.latency == ()


def test_a_window_that_is_reduced_for_the_network_is_reduced_alike(tmp_path, make_model, make_batch):
    network = make_model(backbone="test_vit", window_px=64)
    network.backbone = create_backbone("test_vit", window_px=64, input_px=48)
    model = loaded(tmp_path / "model", network)
    assert model.model.backbone.input_px == 48
    report = save_onnx(model, tmp_path / "model.onnx", seconds=0.0)
    patches = make_batch(3, window_px=64).patches
    np.testing.assert_allclose(run(report.path, patches)[0], model(patches).features.numpy(), rtol=1e-4, atol=1e-5)


def test_an_ensemble_gives_its_mean_and_all_features(tmp_path, make_model, make_batch):
    model = load_model(save_three(tmp_path, make_model))
    report = save_onnx(model, tmp_path / "three.onnx", seconds=0.0)
    assert report.symmetries  # as it was scored
    patches = make_batch(3).patches
    output = model(patches)
    features, expression = run(report.path, patches)
    assert features.shape == (3, 3 * 192)
    np.testing.assert_allclose(features, output.features.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(expression, output.expression.numpy(), rtol=1e-4, atol=1e-5)


def test_symmetries_are_averaged_only_where_the_model_was_scored_so_or_asked(tmp_path, make_model, make_batch):
    network = make_model()
    model = loaded(tmp_path / "model", network, **everything_beside(network))
    patches = make_batch(4).patches
    turned = patches.rot90(1, dims=(2, 3))
    for asked, averaged in ((None, True), (False, False)):
        report = save_onnx(model, tmp_path / "model.onnx", symmetries=asked, seconds=0.0)
        assert report.symmetries is averaged
        ours, again = (run(report.path, images)[1] for images in (patches, turned))
        assert np.allclose(ours, again, rtol=1e-5, atol=1e-5) is averaged


def test_what_a_user_needs_to_know_travels_in_the_file(tmp_path, make_model):
    model = loaded(tmp_path / "model", make_model())
    save_onnx(model, tmp_path / "model.onnx", seconds=0.0)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    assert about["stexpr.genes"] == list(PANEL.main)
    assert (about["stexpr.mpp"], about["stexpr.window_px"], about["stexpr.stain"]) == (4.36, 32, "none")
    assert about["stexpr.hash"] == model.hash
    assert about["stexpr.symmetries"] is False
    (given,) = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("patches", "tensor(uint8)", ["batch", 3, 32, 32])


def test_the_file_names_no_folder_of_this_machine(tmp_path, make_model):
    save_onnx(loaded(tmp_path / "model", make_model()), tmp_path / "model.onnx", seconds=0.0)
    content = (tmp_path / "model.onnx").read_bytes()
    for folder in (str(tmp_path), "site-packages", str(Path(__file__).parents[2])):
        assert folder.encode() not in content


def test_latency_is_measured_at_each_batch_size(tmp_path, make_model):
    model = loaded(tmp_path / "model", make_model())
    threads = torch.get_num_threads()
    report = save_onnx(model, tmp_path / "model.onnx", seconds=0.01)
    assert [entry.batch_size for entry in report.latency] == [1, 32]
    assert all(entry.torch_ms > 0 and entry.onnx_ms > 0 and entry.repeats >= 3 for entry in report.latency)
    assert torch.get_num_threads() == threads
    assert json.loads(json.dumps(report.to_dict()))["latency"][1]["batch_size"] == 32
    (entry,) = onnx_latency(model, report.path, batch_sizes=(2,), seconds=0.0)
    assert entry.repeats == 3


def test_a_file_of_another_model_does_not_pass(tmp_path, make_model, make_batch):
    one, other = (loaded(tmp_path / str(seed), make_model(seed=seed)) for seed in (0, 1))
    report = save_onnx(one, tmp_path / "one.onnx", seconds=0.0)
    session = open_session(str(report.path))
    names = ("features", "expression")

    def reference(model: LoadedModel, shift: float = 0.0) -> Any:
        return lambda patches: (model(patches).features, model(patches).expression + shift)

    assert differences(session, reference(one), names, 32, make_batch(3).patches).keys() == set(names)
    with pytest.raises(ModelError, match="gives other features than PyTorch"):
        differences(session, reference(other), names, 32, None)
    for shift in (1e-2, float("nan")):
        with pytest.raises(ModelError, match="gives other expression than PyTorch"):
            differences(session, reference(one, shift), names, 32, None)


def test_the_examples_are_compared_too(tmp_path, make_model, make_batch):
    model = loaded(tmp_path / "model", make_model())
    with pytest.raises(ModelError, match="built for patches of 32 px"):
        save_onnx(model, tmp_path / "model.onnx", examples=make_batch(2, window_px=48).patches, seconds=0.0)


class Unknown(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvals(images[:, 0]).real


class Fixed(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(1, 2)).repeat(len(images) // len(images), 6)


@pytest.mark.parametrize("network", [Unknown(), Fixed()], ids=["an operator ONNX does not know", "one number of patches"])
def test_what_cannot_be_expressed_is_said_and_nothing_is_written(tmp_path, make_model, network):
    model = loaded(tmp_path / "model", make_model())
    model.model.backbone.network = network
    with pytest.raises(ModelError, match="cannot be written as ONNX") as caught:
        save_onnx(model, tmp_path / "model.onnx", seconds=0.0)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model.onnx").exists()


def test_a_folder_that_cannot_be_written_is_said(tmp_path, make_model):
    model = loaded(tmp_path / "model", make_model())
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot write into"):
        save_onnx(model, tmp_path / "file" / "model.onnx", seconds=0.0)


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_the_extra_is_named_where_it_is_missing(tmp_path, make_model, monkeypatch, library):
    model = loaded(tmp_path / "model", make_model())
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModelError, match=r"pip install 'stexpr\[onnx\]'"):
        save_onnx(model, tmp_path / "model.onnx", seconds=0.0)
    assert not (tmp_path / "model.onnx").exists()
